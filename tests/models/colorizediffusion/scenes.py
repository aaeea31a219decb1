"""Random inputs of a small U-Net, for its published forward pass and for the hoisted one."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from saishiki.kernels.masked_split_cross_attention.reference import is_foreground
from saishiki.models.colorizediffusion import Conditioning, Split, UNet
from saishiki.models.colorizediffusion.config import HINTED_BLOCKS
from saishiki.models.colorizediffusion.cross_attention import resize_mask
from saishiki.models.colorizediffusion.denoise import Constants, Regions, region_queries
from saishiki.models.colorizediffusion.guidance import ROWS
from saishiki.runtime.pipelines.colorizediffusion import DenoiserVariant, Guidance

SLOTS_OF: dict[Guidance, str] = {"none": "c", "reference": "c0", "sketch": "c1", "both": "c01"}
THRESHOLD, FG_SCALE, BG_SCALE, MERGE = 0.45, 0.8, 1.3, 0.3
STRENGTHS = tuple(0.5 + 0.05 * index for index in range(16))


@dataclass(frozen=True)
class Scene:
    """Inputs of B pictures: hints of the sketch and of no sketch, and of everything else one set."""

    x: Tensor
    t: Tensor
    hints: Sequence[Tensor]
    blank_hints: Sequence[Tensor]
    context: Tensor
    mask: Tensor
    maps: Sequence[Tensor]
    style: Sequence[Tensor]


def random_scene(unet: UNet, *, split: bool, batch: int = 2, height: int = 8, width: int = 16) -> Scene:
    """A scene at latent size (height, width)."""
    config, normal = unet.config, torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=normal)

    def hints() -> list[Tensor]:
        places = zip(HINTED_BLOCKS, (0, 1, 2, 3, 3), strict=True)
        return [draw(batch, config.encoder_widths[block], height >> level, width >> level) for block, level in places]

    levels = [place.level for place in config.decoder_places]
    maps = zip(levels, reversed(config.encoder_widths), strict=True)
    return Scene(
        x=draw(batch, config.latent_channels, height, width),
        t=torch.linspace(900.3, 40.0, batch),
        hints=hints(),
        blank_hints=hints(),
        context=draw(batch, config.tokens * (2 if split else 1), config.context_dim),
        mask=torch.rand(batch, 1, height, width, generator=normal),
        maps=[draw(batch, (height >> level) * (width >> level), width_) for level, width_ in maps],
        style=[draw(batch, width_) for width_ in config.style_widths],
    )


def published(unet: UNet, scene: Scene, variant: DenoiserVariant, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """The published forward pass, every row of guidance in full."""
    slots = SLOTS_OF[variant.guidance]
    hints = [scene.blank_hints if slot == "1" else scene.hints for slot in slots]
    context = torch.cat([torch.zeros_like(scene.context) if slot == "0" else scene.context for slot in slots])
    given = (
        scene.x,
        [torch.cat(levels) for levels in zip(*hints, strict=True)],
        context,
        _conditioning(scene, variant),
    )
    x, joined, context, conditioning = converted(given, dtype)
    times = len(slots)
    return unet(
        x.repeat(times, 1, 1, 1),
        scene.t.repeat(times),
        joined,
        context,
        conditioning=_repeated(conditioning, times, unet.config.generation == "v2"),
    )


def hoisted(unet: UNet, scene: Scene, variant: DenoiserVariant) -> tuple[Tensor, Constants]:
    """The time vectors and all constants of :func:`denoise`."""
    keys, values = _keys_and_values(unet, scene, variant)
    warp_keys, warp_values = unet.warp_projections(scene.maps) if variant.warp else (None, None)
    two_sketches = ROWS[variant.guidance].drawn == 2
    pairs = zip(scene.hints, scene.blank_hints, strict=True)
    constants = Constants(
        hints=[torch.cat(pair) if two_sketches else pair[0] for pair in pairs],
        keys=keys,
        values=values,
        regions=_regions(unet, scene, variant) if variant.split else None,
        warp_keys=warp_keys,
        warp_values=warp_values,
        modulation=_modulation(unet, scene) if unet.config.generation == "v2" else None,
    )
    return unet.time_projections(scene.t), constants


def converted(value: Any, dtype: torch.dtype) -> Any:
    """The same in another dtype: tensors, lists of them, and dataclasses that hold them."""
    if isinstance(value, Tensor):
        return value.to(dtype)
    if isinstance(value, list | tuple):
        return type(value)(converted(item, dtype) for item in value)
    if isinstance(value, Conditioning | Split):
        return replace(value, **{field.name: converted(getattr(value, field.name), dtype) for field in fields(value)})
    return value


def _conditioning(scene: Scene, variant: DenoiserVariant) -> Conditioning:
    split = None
    if variant.split:
        merge = MERGE if variant.merge else 0.0
        split = Split(scene.mask, THRESHOLD, FG_SCALE, BG_SCALE, merge, variant.lora_fg, variant.lora_bg)
    maps = list(scene.maps) if variant.warp else None
    return Conditioning(STRENGTHS, split=split, maps=maps, warp_threshold=THRESHOLD, style=list(scene.style))


def _repeated(given: Conditioning, times: int, has_style: bool) -> Conditioning:
    def repeat(tensors: Sequence[Tensor] | None) -> list[Tensor] | None:
        return None if tensors is None else [x.repeat(times, *(1 for _ in x.shape[1:])) for x in tensors]

    split = given.split
    if split is not None:
        split = replace(split, mask=split.mask.repeat(times, 1, 1, 1))
    return replace(given, split=split, maps=repeat(given.maps), style=repeat(given.style) if has_style else None)


def _keys_and_values(unet: UNet, scene: Scene, variant: DenoiserVariant) -> tuple[list[Tensor], list[Tensor]]:
    if not variant.split:
        keys, values = unet.context_projections(scene.context)
        return list(keys), [strength * value for strength, value in zip(STRENGTHS, values, strict=True)]
    fg, bg = scene.context.chunk(2, dim=1)
    fg_keys, fg_values = unet.context_projections(fg, "fg" if variant.lora_fg else None)
    bg_keys, bg_values = unet.context_projections(bg, "bg" if variant.lora_bg else None)
    pairs = zip(STRENGTHS, fg_values, bg_values, strict=True)
    values = [strength * torch.cat([FG_SCALE * a, BG_SCALE * b], dim=1) for strength, a, b in pairs]
    return [torch.cat(pair, dim=1) for pair in zip(fg_keys, bg_keys, strict=True)], values


def _regions(unet: UNet, scene: Scene, variant: DenoiserVariant) -> Regions:
    places = {*unet.config.transformer_places, *unet.config.decoder_places}
    foreground = {}
    for place in places:
        mask = resize_mask(scene.mask, place.scale).flatten(1)
        foreground[place.name] = is_foreground(mask, selection=unet.selection(place), threshold=THRESHOLD).float()
    queries = region_queries(unet.cross_attentions(), lora_fg=variant.lora_fg, lora_bg=variant.lora_bg)
    return Regions(foreground, queries, torch.tensor([MERGE]) if variant.merge else None)


def _modulation(unet: UNet, scene: Scene) -> Tensor:
    """Each picture at its own timestep: (B, .) of a table (S, B, .)."""
    table = unet.style_modulations(torch.cat(list(scene.style), dim=1), unet.time_embedding(scene.t))
    return torch.stack([table[row, row] for row in range(len(table))])
