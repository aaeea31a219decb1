"""The inputs of a denoiser with any hoists, from conditions of the published preparation.

A :class:`Scene` gives the hoisted and the unhoisted form of the same conditions, so that denoisers with different
hoists can be compared on them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from saishiki.kernels.masked_split_cross_attention.reference import is_foreground
from saishiki.models.colorizediffusion.conditions import Conditions
from saishiki.models.colorizediffusion.config import Place, Region
from saishiki.models.colorizediffusion.cross_attention import resize_mask
from saishiki.models.colorizediffusion.denoiser import Denoiser, places_with_regions
from saishiki.models.colorizediffusion.probes import Probe, noise
from saishiki.models.colorizediffusion.unet import UNet
from saishiki.runtime.pipelines.colorizediffusion import DenoiserVariant, Mode
from saishiki.runtime.signature import Signature

Value = TypeVar("Value")

TIMESTEPS = (941.0, 517.5, 48.0, 283.0)
"""Of the rows of a batch, in turn."""
PICTURES = 2
"""How many pictures the rows of a batch are of, in turn."""
THRESHOLD = 0.05
MERGE_SCALE = 0.3


@dataclass(frozen=True)
class Scene:
    """What one batch of a denoiser is about, with nothing hoisted.

    Args:
        x: (B, 4, h, w); t: (B,).
        hints: five of (B, ..), or with guidance by the sketch (2 * B, ..).
        context: (B, tokens, W); strengths: (16,); fg_scale, bg_scale: of each region's colours.
        mask: (B, 1, h, w), maps: twelve; both only for variants that take them.
        style: (B, ..), the vectors side by side, or None.
    """

    unet: UNet
    variant: DenoiserVariant
    x: Tensor
    t: Tensor
    hints: Sequence[Tensor]
    context: Tensor
    strengths: Tensor
    fg_scale: float
    bg_scale: float
    mask: Tensor | None
    maps: Sequence[Tensor]
    style: Tensor | None

    def inputs(self, signature: Signature) -> Mapping[str, Tensor]:
        """Those that the signature names, hoisted or not."""
        wanted = [spec.name for spec in signature.inputs]
        made: dict[str, Tensor] = {}
        for prefix, make in _MAKERS.items():
            if any(name.startswith(prefix) for name in wanted):
                made |= make(self)
        return {name: made[name] for name in wanted}

    def keys_and_values(self) -> dict[str, Tensor]:
        """Of each region's context, the values times strengths and scales; the foreground's tokens first."""
        halves = self.context.chunk(2 if self.variant.split else 1, dim=1)
        regions: list[tuple[Region | None, float]] = [(None, 1.0)]
        if self.variant.split:
            regions = [("fg" if self.variant.lora_fg else None, self.fg_scale)]
            regions += [("bg" if self.variant.lora_bg else None, self.bg_scale)]
        keys, values = [], []
        for half, (region, scale) in zip(halves, regions, strict=True):
            k, v = self.unet.context_projections(half, region)
            keys.append(k)
            values.append([x * (strength * scale) for x, strength in zip(v, self.strengths, strict=True)])
        return _numbered("key", _side_by_side(keys)) | _numbered("value", _side_by_side(values))

    def foreground(self) -> dict[str, Tensor]:
        """Which tokens are foreground, by this generation's rules."""
        return {f"foreground_{p.name}": self._foreground_at(p) for p in places_with_regions(self.unet, self.variant)}

    def _foreground_at(self, place: Place) -> Tensor:
        assert self.mask is not None, "only a split denoiser is asked for regions"
        tokens = resize_mask(self.mask, place.scale).flatten(1)
        return is_foreground(tokens, selection=self.unet.selection(place), threshold=THRESHOLD).float()

    def modulation(self) -> dict[str, Tensor]:
        """Scale and shift of the decoder blocks; zeros without a style."""
        widths = list(self.unet.config.style_widths)
        if self.style is None:
            return {"modulation": torch.zeros(len(self.x), sum(widths))}
        embedding = self.unet.time_embedding(self.t)
        vectors = zip(self.unet.style_modules, torch.split(self.style, widths, dim=1), strict=True)
        return {"modulation": torch.cat([module(vector, embedding) for module, vector in vectors], dim=1)}

    def warp(self) -> dict[str, Tensor]:
        """Keys and values of the background's maps."""
        keys, values = self.unet.warp_projections(self.maps)
        return _numbered("warp_key", keys) | _numbered("warp_value", values)

    def unhoisted(self) -> dict[str, Tensor]:
        """Everything that is there without a hoist."""
        width = sum(self.unet.config.style_widths)
        return {
            "x": self.x,
            "t": self.t,
            "context": self.context,
            "strengths": self.strengths,
            "fg_scale": torch.tensor([self.fg_scale]),
            "bg_scale": torch.tensor([self.bg_scale]),
            "merge_scale": torch.tensor([MERGE_SCALE]),
            "threshold": torch.tensor([THRESHOLD]),
            "style": torch.zeros(len(self.x), width) if self.style is None else self.style,
            "styled": torch.tensor([float(self.style is not None)]),
            **{f"hint_{index}": hint for index, hint in enumerate(self.hints)},
            **_numbered("map", self.maps),
            **({} if self.mask is None else {"mask": self.mask}),
        }


_MAKERS: Mapping[str, Callable[[Scene], dict[str, Tensor]]] = {
    "": Scene.unhoisted,
    "time": lambda scene: {"time": scene.unet.time_projections(scene.t)},
    "embedding": lambda scene: {"embedding": scene.unet.time_embedding(scene.t)},
    "key_": Scene.keys_and_values,
    "foreground_": Scene.foreground,
    "modulation": Scene.modulation,
    "warp_": Scene.warp,
}


def probe_denoiser(probe: Probe, denoiser: Denoiser, mode: Mode) -> Mapping[str, Tensor]:
    """The denoiser's inputs in a run of that mode."""
    return scene_of(probe, denoiser, mode).inputs(denoiser.signature)


def scene_of(probe: Probe, denoiser: Denoiser, mode: Mode) -> Scene:
    """A batch of the probe's pictures, each noised to a timestep that differs over the batch."""
    batch = len(probe.reference)
    t = torch.tensor([TIMESTEPS[row % len(TIMESTEPS)] for row in range(batch)])
    rows = [probe.conditions(mode, row) for row in range(min(PICTURES, batch))]
    return scene_from_conditions(denoiser, _noised(probe, t), t, rows)


def scene_from_conditions(denoiser: Denoiser, x: Tensor, t: Tensor, rows: Sequence[Conditions]) -> Scene:
    """x: (B, 4, h, w) and t: (B,) with the conditions of single pictures, in turn where there are fewer than B."""
    batch, variant = len(x), denoiser.variant
    parts = [[row.hints for row in rows]]
    if variant.guidance in ("sketch", "both"):
        parts.append([row.blank_hints for row in rows])
    return Scene(
        unet=denoiser.unet,
        variant=variant,
        x=x,
        t=t,
        hints=[torch.cat([_over(batch, *(hints[i] for hints in part)) for part in parts]) for i in range(5)],
        context=_over(batch, *(row.context for row in rows)),
        strengths=torch.ones(len(denoiser.unet.config.transformer_places)),
        fg_scale=1.0,
        bg_scale=1.0,
        mask=_over(batch, *_there(row.mask for row in rows)) if variant.split else None,
        maps=[_over(batch, *m) for m in zip(*_there(row.maps for row in rows), strict=True)] if variant.warp else [],
        style=_style_of(batch, rows),
    )


def _noised(probe: Probe, t: Tensor) -> Tensor:
    alphas = probe.network.get_buffer("alphas_cumprod")[t.long()][:, None, None, None]
    latent = probe.own_latent()
    return alphas.sqrt() * latent + (1 - alphas).sqrt() * noise(len(t), *latent.shape[1:])


def _style_of(batch: int, rows: Sequence[Conditions]) -> Tensor | None:
    styles = [row.style for row in rows if row.style is not None]
    return _over(batch, *(torch.cat(style, dim=1) for style in styles)) if styles else None


def _over(batch: int, *rows: Tensor) -> Tensor:
    """(B, ..) of rows (1, ..), in turn."""
    return torch.cat([rows[index % len(rows)] for index in range(batch)])


def _there(values: Iterable[Value | None]) -> list[Value]:
    found = [value for value in values if value is not None]
    assert found, "the mode's conditions lack what its denoiser takes"
    return found


def _side_by_side(regions: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.cat(tokens, dim=1) for tokens in zip(*regions, strict=True)]


def _numbered(name: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{name}_{index:02}": tensor for index, tensor in enumerate(tensors)}
