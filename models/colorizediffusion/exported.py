"""Which modules a bundle has: those that the wanted modes need, and a denoiser for each variant of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from saishiki.models.colorizediffusion import modules
from saishiki.models.colorizediffusion.denoiser import Denoiser
from saishiki.models.colorizediffusion.hoists import DenoiserHoists, hoists_without
from saishiki.models.colorizediffusion.interface import ExportedModule
from saishiki.models.colorizediffusion.network import ColorizeDiffusion
from saishiki.models.family import LoadOptions
from saishiki.runtime.pipelines.colorizediffusion import (
    GUIDANCES,
    MODES,
    DenoiserVariant,
    Generation,
    Guidance,
    Mode,
    check_mode,
    variants_of,
)

DEFAULT_GUIDANCES: tuple[Guidance, ...] = ("reference",)
"""As published: the reference guides, the sketch does not."""

Named = Iterator[tuple[str, ExportedModule]]


@dataclass(frozen=True)
class Exported:
    """What is exported of a network.

    Args:
        merge: also denoisers whose foreground takes a share of the background's colours.
    """

    generation: Generation
    modes: tuple[Mode, ...]
    guidances: tuple[Guidance, ...]
    merge: bool
    hoists: DenoiserHoists

    @property
    def variants(self) -> tuple[DenoiserVariant, ...]:
        """The denoisers."""
        return variants_of(self.generation, self.modes, self.guidances, merge=self.merge)

    def mode_of(self, variant: DenoiserVariant) -> Mode:
        """The mode that makes the most of a variant."""
        return max(
            (mode for mode in self.modes if variant in replace(self, modes=(mode,)).variants),
            key=MODES[self.generation].index,
        )


def exported_of(generation: Generation, options: LoadOptions, *, has_image_encoder: bool) -> Exported:
    """What the options ask for: by default every mode that published use knows, guided by the reference.

    Raises ``ValueError`` for a mode that the generation does not have or that needs the image encoder, for a guidance
    or a hoist that there is not.
    """
    every = tuple(mode for mode in MODES[generation] if not mode.startswith("foreground"))
    modes = options.modes if options.modes is not None else every if has_image_encoder else every[:1]
    for mode in modes:
        check_mode(generation, mode)
    if not has_image_encoder and set(modes) != {"vanilla"}:
        raise ValueError(
            f"the modes {', '.join(modes)} need the image encoder, which the checkpoint does not hold: give it with "
            "--image-encoder, or export --modes vanilla"
        )
    guidances = DEFAULT_GUIDANCES if options.guidance is None else options.guidance
    if unknown := [name for name in guidances if name not in GUIDANCES]:
        raise ValueError(f"no guidance {', '.join(unknown)}: expected some of {', '.join(GUIDANCES)}")
    return Exported(
        generation=generation,
        modes=tuple(mode for mode in MODES[generation] if mode in modes),
        guidances=tuple(guidance for guidance in GUIDANCES if guidance in guidances),
        merge=options.merge,
        hoists=hoists_without(options.without_hoists),
    )


def modules_of(network: ColorizeDiffusion, exported: Exported) -> Mapping[str, ExportedModule]:
    """The modules by name, in the order in which a run meets them."""
    named = (*_encoders(network, exported), *_preparing(network, exported), *_denoisers(network, exported))
    decoder = modules.PictureDecoding(network.first_stage_model, network.config)
    return {**dict(named), "vae_decoder": decoder}


def _encoders(network: ColorizeDiffusion, exported: Exported) -> Named:
    config, modes = network.config, set(exported.modes)
    if network.cond_stage_model is not None:
        yield "image_encoder", modules.ImageEncoding(network.cond_stage_model, config)
    yield "sketch_encoder", modules.SketchEncoding(network.control_encoder, config)
    if network.thresh_embedder is not None and network.transformer is not None and _has_background(modes):
        yield "threshold_embedder", modules.ThresholdEmbedding(network.thresh_embedder, config)
        yield "cluster_transformer", modules.Clustering(network.transformer, config)
    if network.style_encoder is not None and modes & {"style", "full"}:
        yield "style_encoder", modules.StyleEncoding(network.style_encoder, config)
    if network.bg_encoder is not None and _has_background(modes):
        yield "background_encoder", modules.BackgroundEncoding(network.bg_encoder, config)
    if network.style_encoder is not None and modes & {"style", "background", "full"}:
        yield "vae_encoder", modules.PictureEncoding(network.first_stage_model, config)


def _has_background(modes: set[Mode]) -> bool:
    return bool(modes & {"background", "full", "foreground+background"})


def _preparing(network: ColorizeDiffusion, exported: Exported) -> Named:
    """What a denoiser's inputs are projected by: only where that is hoisted."""
    unet, hoists = network.unet, exported.hoists
    if hoists.time or network.config.generation == "v2":
        yield "time_projection", modules.TimeProjection(unet)
    variants = exported.variants if hoists.kv else ()
    if any(not (variant.lora_fg and variant.lora_bg) for variant in variants):
        yield "context_projector", modules.ContextProjector(unet, None)
    if any(variant.lora_fg for variant in variants):
        yield "context_projector_fg", modules.ContextProjector(unet, "fg")
    if any(variant.lora_bg for variant in variants):
        yield "context_projector_bg", modules.ContextProjector(unet, "bg")
    if hoists.style and set(exported.modes) & {"style", "full"}:
        yield "style_projector", modules.StyleProjector(unet)
    if hoists.warp and any(variant.warp for variant in exported.variants):
        yield "warp_projector", modules.WarpProjector(unet)


def _denoisers(network: ColorizeDiffusion, exported: Exported) -> Named:
    for variant in exported.variants:
        yield variant.module_name, Denoiser(network.unet, variant, exported.hoists)
