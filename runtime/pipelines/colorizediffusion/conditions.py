"""Which picture feeds what, mode by mode: the published preparation of a run's conditions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from saishiki.runtime.pipelines.colorizediffusion.encoders import Encoders
from saishiki.runtime.pipelines.colorizediffusion.options import ColorizeDiffusionOptions
from saishiki.runtime.pipelines.colorizediffusion.scene import Picture, Scene
from saishiki.runtime.pipelines.colorizediffusion.variants import Generation, Mode
from saishiki.runtime.pipelines.reference_cache import Node


@dataclass(frozen=True)
class Needs:
    """What a mode takes besides sketch and reference.

    Args:
        mask: a mask of the sketch.
        background: background tokens, from a background picture or from the reference without its foreground.
        style: the style encoder.
        maps: the background encoder.
    """

    mask: bool = False
    background: bool = False
    style: bool = False
    maps: bool = False


def needs_of(generation: Generation, mode: Mode) -> Needs:
    """What a mode takes in a generation that has it."""
    background = mode in ("background", "full", "foreground+background")
    return Needs(
        mask=background or mode == "foreground",
        background=background,
        style=mode in ("style", "full"),
        maps=background and generation == "v2",
    )


@dataclass(frozen=True, eq=False)
class Conditions:
    """What a picture's run is conditioned on, not yet computed.

    Args:
        contexts: ``tokens`` for the foreground and the background half of cross-attention, or for all of it.
        style: ``style``, or None.
        maps: ``map_00`` .. ``map_11``, or None.
    """

    contexts: tuple[Node, ...]
    style: Node | None = None
    maps: Node | None = None


def conditions_of(
    scene: Scene, options: ColorizeDiffusionOptions, generation: Generation, encoders: Encoders
) -> Conditions:
    """A picture's conditions. The VAE's draws are numbered in the published order: style's, then the maps'."""
    needs = needs_of(generation, options.mode)
    contexts = _CONTEXTS[generation](scene, options, encoders)
    style = _style(scene, options, encoders) if needs.style else None
    return Conditions(contexts, style, _maps(scene, options, encoders) if needs.maps else None)


def _contexts_v1(scene: Scene, options: ColorizeDiffusionOptions, encoders: Encoders) -> tuple[Node, ...]:
    reference = encoders.tokens(scene.reference)
    if options.mode == "vanilla":
        return (reference,)
    return reference, encoders.tokens(_background(scene))


def _contexts_v15(scene: Scene, options: ColorizeDiffusionOptions, encoders: Encoders) -> tuple[Node, ...]:
    reference = encoders.tokens(scene.reference)
    if options.mode == "vanilla":
        return (reference,)
    if options.mode == "foreground":
        return reference, reference
    thresholds = encoders.thresholds(options.reference_threshold, options.sketch_threshold)
    foreground = encoders.shifted(reference, thresholds, 1)
    background = encoders.shifted(encoders.tokens(_background(scene)), thresholds, 0)
    if scene.background is None:  # as published, a background picture of its own is not clustered
        background = encoders.clustered(background)
    if options.mode == "background":
        return foreground, background
    both = encoders.joined(foreground, background)
    return both, both


def _contexts_v2(scene: Scene, options: ColorizeDiffusionOptions, encoders: Encoders) -> tuple[Node, ...]:
    reference = encoders.tokens(scene.reference)
    if options.mode in ("vanilla", "style"):
        return (reference,)
    if options.mode == "foreground":
        return reference, reference
    return reference, encoders.tokens(_background(scene))


_CONTEXTS: Mapping[Generation, Callable[[Scene, ColorizeDiffusionOptions, Encoders], tuple[Node, ...]]] = {
    "v1": _contexts_v1,
    "v1.5": _contexts_v15,
    "v2": _contexts_v2,
}


def _background(scene: Scene) -> Picture:
    picture = scene.background or scene.masked_reference
    assert picture is not None, "a mode with a background was checked to have one"
    return picture


def _style(scene: Scene, options: ColorizeDiffusionOptions, encoders: Encoders) -> Node:
    assert scene.reference is not None, "style was checked to have a reference"
    own = _style_of(scene.reference, 0, scene, encoders)
    if scene.background is None or options.merge_scale == 0:
        return own
    return encoders.mixed_style(own, _style_of(scene.background, 1, scene, encoders), options.merge_scale)


def _style_of(picture: Picture, draw: int, scene: Scene, encoders: Encoders) -> Node:
    latent = encoders.latent(picture, scene.size, scene.posterior, draw)
    return encoders.style(latent, encoders.tokens(picture), picture, scene.size)


def _maps(scene: Scene, options: ColorizeDiffusionOptions, encoders: Encoders) -> Node:
    """The background encoder's maps.

    As published its context is the reference's tokens, but for a background picture in the mode ``background``.
    """
    assert scene.reference is not None, "background was checked to have a reference"
    draw = 1 if options.mode == "full" else 0
    latent = encoders.latent(_background(scene), scene.size, scene.posterior, draw)
    seen = scene.background if scene.background is not None and options.mode == "background" else scene.reference
    return encoders.background_maps(latent, encoders.tokens(seen), scene.background or scene.reference, scene.size)
