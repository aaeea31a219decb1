// Renders drawn characters as (target, sketch, reference) triples, deterministically from a seed.
//
//   node render.mjs --count 16000 --size 64 --seed 1 --split train   --out data/train
//   node render.mjs --count 512   --size 64 --seed 2 --split heldout --out data/heldout
//   node render.mjs --count 24    --size 64 --seed 2 --split heldout --png heldout
//
// Writes <out>.bin, uint8 (count, 7, size, size) with planes target RGB | sketch | reference RGB, and <out>.json;
// with --png instead <png>/NN_sketch.png, NN_reference.png and NN_truth.png.
// Faces: "Adventurer" by Lisa Wischofsky and "Avatar Illustration System" by Micah Lanier, both CC BY 4.0.

import { once } from 'node:events';
import { createWriteStream, mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { createAvatar } from '@dicebear/core';
import * as adventurer from '@dicebear/adventurer';
import * as micah from '@dicebear/micah';
import { Resvg } from '@resvg/resvg-js';

const HELDOUT_SHARE = 16; // one drawing in 16 (a combination of parts, colours aside) is never trained on
const SKIN_TONES = ['f9d9c2', 'f2d3b1', 'ecad80', 'd79b6c', 'b97a4b', '9e5622', '763900', '5a3020'];

// Left out: hair too sparse to carry a colour, and flowers in it, whose colours are fixed in the drawing.
const LITTLE_OR_FLOWERED_HAIR = new Set(['short12', 'short13', 'short19', 'long03', 'long08', 'long18']);

// Parts that carry the expression, and parts that may be absent; hair is listed apart because it carries a colour.
// Micah: only hair styles with an ink outline, and eyes without colour of their own, so that the sketch tells all.
const STYLES = [
  {
    name: 'adventurer', style: adventurer, weight: 0.65, skin: 'skinColor',
    hair: adventurer.schema.properties.hair.default.filter((name) => !LITTLE_OR_FLOWERED_HAIR.has(name)),
    face: partsOf(adventurer, ['eyes', 'eyebrows', 'mouth']),
    extras: { glasses: 0.15, earrings: 0.15 }, colours: [],
  },
  {
    name: 'micah', style: micah, weight: 0.35, skin: 'baseColor',
    hair: ['fonze', 'dannyPhantom', 'full', 'turban', 'pixie'],
    face: { ...partsOf(micah, ['eyebrows', 'mouth', 'nose', 'ears', 'shirt']), eyes: ['eyes', 'round', 'smiling'] },
    extras: { glasses: 0.2, earrings: 0.2 }, colours: ['shirtColor', 'glassesColor', 'earringColor'],
  },
];
const IDENTITY = ['nose', 'ears', 'shirt']; // parts of the face that stay with the character

function partsOf(style, names) {
  return Object.fromEntries(names.map((name) => [name, style.schema.properties[name].default]));
}

// A small seeded generator of numbers in [0, 1): mulberry32.
function randomFrom(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const pick = (random, list) => list[Math.floor(random() * list.length)];
const between = (random, low, high) => low + random() * (high - low);

function hexFromHsl(hue, saturation, lightness) {
  const amplitude = saturation * Math.min(lightness, 1 - lightness);
  const channel = (n) => {
    const k = (n + hue * 12) % 12;
    return lightness - amplitude * Math.max(-1, Math.min(k - 3, 9 - k, 1));
  };
  return [0, 8, 4].map((n) => Math.round(255 * channel(n)).toString(16).padStart(2, '0')).join('');
}

function freeColour(random, darkest, lightest) {
  return hexFromHsl(random(), between(random, 0, 1), between(random, darkest, lightest));
}

function skinColour(random) {
  if (random() < 0.3) return freeColour(random, 0.4, 0.9);
  const tone = pick(random, SKIN_TONES);
  const channels = [0, 2, 4].map((i) => parseInt(tone.slice(i, i + 2), 16) + between(random, -14, 14));
  return channels.map((v) => Math.round(Math.min(255, Math.max(0, v))).toString(16).padStart(2, '0')).join('');
}

function drawParts(random, kind) {
  const parts = { hair: pick(random, kind.hair) };
  for (const [name, choices] of Object.entries(kind.face)) parts[name] = pick(random, choices);
  for (const [name, share] of Object.entries(kind.extras)) {
    parts[name] = random() < share ? pick(random, kind.style.schema.properties[name].default) : null;
  }
  return parts;
}

function drawColours(random, kind) {
  const colours = { [kind.skin]: skinColour(random), hairColor: freeColour(random, 0.2, 0.85) };
  for (const name of kind.colours) colours[name] = freeColour(random, 0.25, 0.9);
  return { ...colours, backgroundColor: freeColour(random, 0.25, 0.97) };
}

// FNV-1a of the combination of parts: decides on which side of the split a drawing lies, whatever its colours.
function isHeldOut(kind, parts) {
  let hash = 0x811c9dc5;
  for (const letter of kind.name + JSON.stringify(parts)) {
    hash = Math.imul(hash ^ letter.charCodeAt(0), 0x01000193) >>> 0;
  }
  return (hash ^ (hash >>> 15)) % HELDOUT_SHARE === 0;
}

function svgOf(kind, parts, colours) {
  const options = { seed: 'saishiki', ...Object.fromEntries(Object.entries(colours).map(([k, v]) => [k, [v]])) };
  for (const [name, value] of Object.entries(parts)) {
    options[`${name}Probability`] = value === null ? 0 : 100;
    if (value !== null) options[name] = [value];
  }
  return createAvatar(kind.style, { ...options, facialHairProbability: 0, featuresProbability: 0 }).toString();
}

// The ink lines: fills that are not black become paper, strokes become ink.
function inkOf(svg) {
  const isBlack = (colour) => /^#0{3}(0{3})?$/.test(colour);
  return svg
    .replace(/fill="(#[0-9a-fA-F]{3,8})"/g, (all, colour) => (isBlack(colour) ? all : 'fill="#fff"'))
    .replace(/stroke="(#[0-9a-fA-F]{3,8})"/g, 'stroke="#000"');
}

function rasterOf(svg, size) {
  return new Resvg(svg, { fitTo: { mode: 'width', value: size }, background: '#fff' }).render();
}

function copyPlanes(pixels, into, plane, channels, area) {
  for (let c = 0; c < channels; c++) {
    for (let i = 0; i < area; i++) into[(plane + c) * area + i] = pixels[4 * i + c];
  }
}

function drawCharacter(random, split) {
  for (;;) {
    const kind = random() < STYLES[0].weight ? STYLES[0] : STYLES[1];
    const parts = drawParts(random, kind);
    if (isHeldOut(kind, parts) !== (split === 'heldout')) continue;
    const other = drawParts(random, kind);
    for (const name of IDENTITY) if (name in parts) other[name] = parts[name];
    if (random() < 0.5) other.hair = parts.hair;
    for (const name of Object.keys(kind.colours.length ? kind.extras : {})) other[name] = parts[name];
    return { kind, parts, other, colours: drawColours(random, kind) };
  }
}

function rasters({ kind, parts, other, colours }, size) {
  return {
    truth: rasterOf(svgOf(kind, parts, colours), size),
    sketch: rasterOf(inkOf(svgOf(kind, parts, { ...colours, hairColor: 'ffffff' })), size),
    reference: rasterOf(svgOf(kind, other, colours), size),
  };
}

function planesOf({ truth, sketch, reference }, size) {
  const area = size * size;
  const planes = new Uint8Array(7 * area);
  copyPlanes(truth.pixels, planes, 0, 3, area);
  copyPlanes(sketch.pixels, planes, 3, 1, area);
  copyPlanes(reference.pixels, planes, 4, 3, area);
  return planes;
}

async function writePlanes(characters, header, out) {
  mkdirSync(dirname(out), { recursive: true });
  const file = createWriteStream(`${out}.bin`);
  for (const character of characters) {
    if (!file.write(planesOf(rasters(character, header.size), header.size))) await once(file, 'drain');
  }
  file.end();
  writeFileSync(`${out}.json`, JSON.stringify({ ...header, planes: 7 }) + '\n');
}

function writePngs(characters, { size }, folder) {
  mkdirSync(folder, { recursive: true });
  let number = 0;
  for (const character of characters) {
    const name = String(number++).padStart(2, '0');
    for (const [role, raster] of Object.entries(rasters(character, size))) {
      writeFileSync(join(folder, `${name}_${role}.png`), raster.asPng());
    }
  }
}

function* drawCharacters({ count, seed, split }) {
  const random = randomFrom(seed);
  for (let i = 0; i < count; i++) yield drawCharacter(random, split);
}

const { values } = parseArgs({
  options: {
    count: { type: 'string', default: '16000' },
    size: { type: 'string', default: '64' },
    seed: { type: 'string', default: '1' },
    split: { type: 'string', default: 'train' },
    out: { type: 'string', default: 'data/train' },
    png: { type: 'string' },
  },
});
if (!['train', 'heldout'].includes(values.split)) throw new Error(`--split is train or heldout, not ${values.split}`);
const header = { count: Number(values.count), size: Number(values.size), seed: Number(values.seed), split: values.split };
if (values.png) writePngs(drawCharacters(header), header, values.png);
else await writePlanes(drawCharacters(header), header, values.out);
