"""Stand-ins for a ColorizeDiffusion bundle: modules that check what they are given and answer with arithmetic.

Every output depends on every input, so whatever reaches a module shows in the image, and whatever does not, does not.
"""

import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from saishiki.runtime.backends.host_loop import run_loop_on_host
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.manifest import (
    FORMAT_VERSION,
    Certificate,
    CheckpointEntry,
    FileEntry,
    GraphEntry,
    Manifest,
    ModuleEntry,
    PrecisionPolicy,
    SamplerDefaults,
)
from saishiki.runtime.pipelines.colorizediffusion import MODES, variants_of
from saishiki.runtime.signature import Profile, Signature, TensorSpec

WIDTH, CHANNELS, TIME, EMBEDDING, MODULATION = "8", "4", "6", "8", "10"
LATENT = ("batch", "4", "height/8", "width/8")
PICTURE = ("batch", "3", "height", "width")
TOKENS = {"in_0": 64, "in_1": 256, "in_2": 1024, "mid": 4096, "out_3": 4096, "out_2": 1024, "out_1": 256, "out_0": 64}
MAP_AREAS = (4096,) * 3 + (1024,) * 3 + (256,) * 3 + (64,) * 3
ALPHAS = np.linspace(0.9991, 0.0047, 1000, dtype=np.float32)
FILE = FileEntry("x", "0" * 64, 0)


def spec(name, *dims):
    return TensorSpec(name, "float32", dims)


def signature(inputs, outputs):
    return Signature(tuple(inputs), tuple(outputs), {"height": 64, "width": 64})


def numbered(prefix, count, *dims):
    return [spec(f"{prefix}_{i:02}", *dims) for i in range(count)]


def maps(size="height*width"):
    return [spec(f"map_{i:02}", "batch", f"{size}/{area}", CHANNELS) for i, area in enumerate(MAP_AREAS)]


def warp_keys_and_values(size="height*width"):
    areas = list(enumerate(MAP_AREAS))
    return [
        spec(f"warp_{kind}_{i:02}", "batch", f"{size}/{area}", CHANNELS)
        for kind in ("key", "value")
        for i, area in areas
    ]


def hints(batch):
    return [spec(f"hint_{i}", batch, "2", f"height/{s}", f"width/{s}") for i, s in enumerate((8, 16, 32, 64, 64))]


def encoder_inputs():
    return [spec("z", *LATENT), spec("context", "batch", "256", WIDTH), spec("size", "batch", "512")]


def encoders(generation):
    """The modules around the denoisers."""
    projected = numbered("key", 16, "batch", "tokens", CHANNELS) + numbered("value", 16, "batch", "tokens", CHANNELS)
    times = [spec("time", "steps", TIME)] + ([spec("embedding", "steps", EMBEDDING)] if generation == "v2" else [])
    made = {
        "image_encoder": signature(
            [spec("pixels", "batch", "3", "224", "224")], [spec("tokens", "batch", "257", WIDTH)]
        ),
        "sketch_encoder": signature([spec("sketch", *PICTURE)], hints("batch")),
        "vae_decoder": signature([spec("z", *LATENT)], [spec("image", *PICTURE)]),
        "time_projection": signature([spec("t", "steps")], times),
        "context_projector": signature([spec("context", "batch", "tokens", WIDTH)], projected),
    }
    if generation != "v1":
        for region in ("fg", "bg"):
            made[f"context_projector_{region}"] = made["context_projector"]
    if generation == "v1.5":
        made["threshold_embedder"] = signature([spec("thresholds", "count")], [spec("embedding", "count", "1", WIDTH)])
        tokens = ("batch", "256", WIDTH)
        made["cluster_transformer"] = signature([spec("tokens", *tokens)], [spec("clustered", *tokens)])
    if generation == "v2":
        made["vae_encoder"] = signature([spec("image", *PICTURE)], [spec("mean", *LATENT), spec("logvar", *LATENT)])
        made["background_encoder"] = signature(encoder_inputs(), maps())
        made["warp_projector"] = signature(maps("area"), warp_keys_and_values("area"))
        made["style_encoder"] = signature(encoder_inputs(), [spec("style", "batch", "5")])
        made["style_projector"] = signature(
            [spec("style", "batch", "5"), spec("embedding", "steps", EMBEDDING)],
            [spec("modulation", "steps", "batch", MODULATION)],
        )
    return made


def denoiser(generation, variant):
    """The signature of a denoiser with all hoists on."""
    inputs = [spec("x", *LATENT), spec("time", "batch", TIME)]
    inputs += hints("2*batch" if variant.guidance in ("sketch", "both") else "batch")
    inputs += numbered("key", 16, "batch", "tokens", CHANNELS) + numbered("value", 16, "batch", "tokens", CHANNELS)
    if generation == "v2":
        inputs.append(spec("modulation", "batch", MODULATION))
    if variant.split:
        levels = [level for level in TOKENS if variant.warp or level != "out_3"]
        inputs += [spec(f"foreground_{level}", "batch", f"height*width/{TOKENS[level]}") for level in levels]
    if variant.warp:
        inputs += warp_keys_and_values()
    if variant.merge:
        inputs.append(spec("merge_scale", "1"))
    return signature(inputs, [spec("prediction", *rows_of(variant))])


def rows_of(variant):
    return (f"{variant.slots}*batch" if variant.slots > 1 else "batch", *LATENT[1:])


def bundle_of(
    generation,
    *,
    modes=None,
    guidances=("none", "reference", "sketch", "both"),
    merge=True,
    denoisers=None,
    prediction="v",
    without=(),
):
    """A bundle whose files do not exist: the fake backend below reads none."""
    signatures = encoders(generation)
    for variant in variants_of(generation, modes or MODES[generation], guidances, merge=merge):
        signatures[variant.module_name] = (denoisers or denoiser)(generation, variant)
    graphs = {"fp32": GraphEntry(FILE, None, 1, 23)}
    point = {"batch": 1, "height": 64, "width": 128, "steps": 1, "tokens": 256, "count": 2}
    least = {**point, "width": 64}
    most = {**point, "batch": 2, "height": 192, "width": 192, "steps": 999, "tokens": 1024}
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        saishiki_version="0",
        family=f"colorizediffusion-{generation}",
        variant="custom",
        prediction=prediction,
        config={"tokens": 256, "context_dim": int(WIDTH)},
        checkpoint=CheckpointEntry("x", "0", {}),
        schedule=FILE,
        sampler=SamplerDefaults("diffuser_dpm", 20, 1.0, "noise"),
        profiles=(Profile(least, point, most),),
        modules={name: ModuleEntry(made, graphs, ()) for name, made in signatures.items() if name not in without},
        precision=PrecisionPolicy("fp32", (), 0.0, ""),
        parity=FILE,
        certificate=Certificate("passed", "fake", {}, (), ()),
        export_command="",
    )
    return FakeBundle(Path("fake"), manifest)


@dataclass(frozen=True)
class FakeBundle(Bundle):
    """A bundle with a schedule, and no files."""

    def schedule_tables(self, *names):
        return dict.fromkeys(names, ALPHAS)


def mixed(name, inputs):
    """A number per picture that depends on every element of every input, at its place and under its name."""
    total = 0.0
    for key in sorted(inputs):
        flat = np.asarray(inputs[key], np.float64).ravel()
        weights = 1 + np.arange(flat.size) % 97 / 97
        total += np.sin(zlib.crc32(f"{name}/{key}".encode()) % 1000 + 1) * float(flat @ weights) / max(flat.size, 1)
    return np.tanh(total)


@dataclass
class FakeModule:
    """Checks inputs against its signature, counts its calls, and keeps the last inputs."""

    name: str
    signature: Signature
    calls: Counter
    last: dict

    def __call__(self, **inputs):
        sizes = self.signature.sizes_from_arrays(inputs)
        assert all(np.isfinite(array).all() for array in inputs.values()), self.name
        self.calls[self.name] += 1
        self.last[self.name] = inputs
        value = mixed(self.name, inputs)
        return {out.name: self._filled(out, sizes, value) for out in self.signature.outputs}

    def _filled(self, out, sizes, value):
        shape = out.shape(sizes)
        pattern = np.cos(np.arange(int(np.prod(shape))) % 251 + zlib.crc32(out.name.encode()) % 100).reshape(shape)
        return (0.4 * pattern + 0.5 * value).astype(np.float32)


@dataclass
class FakeBackend:
    """Loads fake modules and runs the loop in host memory."""

    calls: Counter = field(default_factory=Counter)
    loaded: list = field(default_factory=list)
    last: dict = field(default_factory=dict)
    loops: list = field(default_factory=list)
    name: str = "fake"
    default_precision: str = "fp32"

    def load(self, bundle, module, precision):
        self.loaded.append(module)
        return FakeModule(module, bundle.module(module).signature, self.calls, self.last)

    def run_loop(self, denoiser, loop, on_step):
        self.loops.append(loop)
        return run_loop_on_host(denoiser, loop, on_step)

    def close(self):
        pass
