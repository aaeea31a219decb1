"""From a call's pictures and masks to scenes: read, checked and laid on the working area before any network runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from saishiki.runtime.images import read_image
from saishiki.runtime.pipelines.colorizediffusion.conditions import Needs
from saishiki.runtime.pipelines.colorizediffusion.given_masks import place_sketch_mask, read_mask
from saishiki.runtime.pipelines.colorizediffusion.mask_networks import MaskNetworks, network_key
from saishiki.runtime.pipelines.colorizediffusion.masks import mask_to_latent
from saishiki.runtime.pipelines.colorizediffusion.options import ColorizeDiffusionOptions
from saishiki.runtime.pipelines.colorizediffusion.reference import keep_background, pad_sides
from saishiki.runtime.pipelines.colorizediffusion.scene import Picture, Posterior, Scene
from saishiki.runtime.pipelines.colorizediffusion.sketch import PlacedSketch, empty_sketch, prepare_sketch
from saishiki.runtime.pipelines.protocol import Pictures
from saishiki.runtime.pipelines.reference_cache import Key, digest_of
from saishiki.runtime.signature import Array

Made = TypeVar("Made")


@dataclass(frozen=True)
class Preparation:
    """Makes the scenes of one call."""

    pictures: Pictures
    options: ColorizeDiffusionOptions
    needs: Needs
    networks: MaskNetworks

    def scenes(self) -> list[Scene]:
        """A scene for every sketch; raises ``ImageError`` for pictures and masks that cannot be used."""
        backgrounds = self._backgrounds()
        references = [picture and _padded(picture, self.options.padding_scale) for picture in self._references]
        sketches = [self._sketch(drawing) for drawing in self._drawings]
        masked, masks = self._masked(backgrounds), self._latent_masks(sketches)
        parts = zip(sketches, references, backgrounds, masked, masks, self._posteriors(), strict=True)
        return [
            Scene(sketch.pixels, reference, background, masked, mask, posterior, sketch.original_shape)
            for sketch, reference, background, masked, mask, posterior in parts
        ]

    @property
    def _count(self) -> int:
        return len(self.pictures.sketches)

    @cached_property
    def _drawings(self) -> list[NDArray[np.uint8] | None]:
        return [None if source is None else read_image(source) for source in self.pictures.sketches]

    def _sketch(self, drawing: NDArray[np.uint8] | None) -> PlacedSketch:
        height, width = self.pictures.height, self.pictures.width
        if drawing is None:
            return empty_sketch(height=height, width=width)
        return prepare_sketch(drawing, height=height, width=width, mode=self.options.preprocess)

    def _backgrounds(self) -> list[Picture | None]:
        """The background pictures, with their foreground painted white where that is asked for."""
        if not (self.needs.background or self.needs.style):
            return [None] * self._count
        pictures = _each_once(_read, _one_each(self.options.background, self._count, "background"))
        if not self.options.remove_foreground:
            return pictures
        return [
            None if picture is None else self._background_of(picture, mask, 1.0)
            for picture, mask in zip(pictures, self._reference_masks, strict=True)
        ]

    def _masked(self, backgrounds: Sequence[Picture | None]) -> list[Picture | None]:
        """The references with their foreground painted white, where no background picture takes that place."""
        if not self.needs.background:
            return [None] * self._count
        scale = self.options.padding_scale
        return [
            None if picture is None or background is not None else self._background_of(picture, mask, scale)
            for picture, background, mask in zip(self._references, backgrounds, self._reference_masks, strict=True)
        ]

    @cached_property
    def _references(self) -> list[Picture | None]:
        """The references as they are, before they are padded."""
        return _each_once(_read, self.pictures.references)

    @property
    def _reference_masks(self) -> Sequence[Any]:
        return _one_each(self.options.reference_mask, self._count, "reference_mask")

    def _background_of(self, picture: Picture, mask: Any, padding: float) -> Picture:
        """The picture, padded, with white where a given mask or the network says foreground."""
        threshold = self.options.reference_threshold
        if mask is None:
            network, padded = self.options.reference_mask_network, _padded(picture, padding)
            return _masked(padded, network_key(network), threshold, lambda: self._found(network, padded))
        given = read_mask(mask, height=picture.height, width=picture.width, name="reference mask")
        return _padded(_masked(picture, ("mask", digest_of(given)), threshold, lambda: given), padding)

    def _found(self, network: Any, picture: Picture) -> Array:
        return self.networks.of_picture(network, picture.pixels())

    def _latent_masks(self, sketches: Sequence[PlacedSketch]) -> list[Array | None]:
        if not self.needs.mask:
            return [None] * self._count
        masks = _one_each(self.options.sketch_mask, self._count, "sketch_mask")
        return [
            mask_to_latent(self._sketch_mask(*parts)) for parts in zip(sketches, self._drawings, masks, strict=True)
        ]

    def _sketch_mask(self, sketch: PlacedSketch, drawing: NDArray[np.uint8] | None, mask: Any) -> Array:
        """(1, 1, H, W) on the working area."""
        height, width = self.pictures.height, self.pictures.width
        if mask is None:
            return self.networks.of_sketch(self.options.sketch_mask_network, sketch.pixels)
        source_height, source_width = (height, width) if drawing is None else drawing.shape[:2]
        given = read_mask(mask, height=source_height, width=source_width, name="sketch mask")
        return place_sketch_mask(given, sketch.original_shape, height=height, width=width)

    def _posteriors(self) -> list[Posterior]:
        given = self.options.reference_noise
        if given is None:
            return [Posterior(self.options.reference_seed)] * self._count
        shape = (4, self.pictures.height // 8, self.pictures.width // 8)
        draws = [_noise_of_draw(noise, (self._count, *shape), draw) for draw, noise in enumerate(given)]
        return [Posterior(0, tuple(draw[i] for draw in draws)) for i in range(self._count)]


def _read(source: Any) -> Picture | None:
    return None if source is None else Picture.of(read_image(source))


def _padded(picture: Picture, scale: float) -> Picture:
    if scale == 1:
        return picture
    pixels = pad_sides(picture.pixels(), scale)
    height, width = pixels.shape[:2]
    return Picture(("padded", picture.key, scale), height, width, lambda: pixels)


def _masked(picture: Picture, mask: Key, threshold: float, read: Callable[[], Array]) -> Picture:
    key = ("background of", picture.key, mask, threshold)
    return Picture(key, picture.height, picture.width, lambda: keep_background(picture.pixels(), read(), threshold))


def _one_each(given: Any, count: int, name: str) -> Sequence[Any]:
    """One for every sketch, from one for all or a list; raises ``ValueError`` for a list of another length."""
    if not isinstance(given, (list, tuple)):
        return [given] * count
    if len(given) != count:
        raise ValueError(f"{name}: expected one picture, or one for each of the {count} sketches, got {len(given)}")
    return given


def _each_once(make: Callable[[Any], Made], sources: Sequence[Any]) -> list[Made]:
    """What is made of every source; a source that comes again is not made again."""
    made: dict[int, Made] = {}
    for source in sources:
        if id(source) not in made:
            made[id(source)] = make(source)
    return [made[id(source)] for source in sources]


def _noise_of_draw(noise: Any, shape: tuple[int, ...], draw: int) -> Array:
    """Noise of ``shape`` (B, 4, H/8, W/8) from that, or from one for all; raises ``ValueError`` for another shape."""
    given = np.asarray(noise)
    if given.shape not in (shape, (1, *shape[1:])) or given.dtype.kind != "f":
        expected = f"floats {shape}" + (f" or {(1, *shape[1:])}" if shape[0] > 1 else "")
        raise ValueError(f"reference_noise {draw}: expected {expected}, got {given.dtype} {given.shape}")
    return np.repeat(given, shape[0] // len(given), axis=0)
