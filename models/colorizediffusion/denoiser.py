"""The denoiser as an exported module: one network, a variant, and the hoists that its graph is made with.

What is hoisted comes in as an input; what is not is computed from inputs that are nearer to the pictures. Either way
the prediction is the published one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from saishiki.kernels.masked_split_cross_attention.reference import is_foreground
from saishiki.models.colorizediffusion.config import Place
from saishiki.models.colorizediffusion.cross_attention import resize_mask
from saishiki.models.colorizediffusion.denoise import Constants, Regions, denoise, region_queries
from saishiki.models.colorizediffusion.guidance import ROWS
from saishiki.models.colorizediffusion.hoists import DenoiserHoists
from saishiki.models.colorizediffusion.interface import Dims, ExportedModule, Given, numbered
from saishiki.models.colorizediffusion.modules import hint_specs, map_specs, time_width
from saishiki.models.colorizediffusion.split_operators import split_attend, split_project
from saishiki.models.colorizediffusion.unet import UNet
from saishiki.runtime.pipelines.colorizediffusion import DenoiserVariant
from saishiki.runtime.signature import Signature, TensorSpec

ROWS_OF_PICTURES = "batch"


class Denoiser(ExportedModule):
    """``x`` (B, 4, H/8, W/8) and all that conditions it -> ``prediction`` (slots * B, 4, H/8, W/8)."""

    def __init__(self, unet: UNet, variant: DenoiserVariant, hoists: DenoiserHoists) -> None:
        super().__init__(denoiser_signature(unet, variant, hoists))
        self.unet, self.variant, self.hoists = unet, variant, hoists
        self.queries = None
        if variant.split:
            layers = unet.cross_attentions()
            self.queries = region_queries(layers, lora_fg=variant.lora_fg, lora_bg=variant.lora_bg)

    def compute(self, given: Given) -> Tensor:
        keys, values = self._keys_and_values(given)
        warp_keys, warp_values = self._warp_keys_and_values(given)
        constants = Constants(
            hints=numbered(given, "hint_"),
            keys=keys,
            values=values,
            regions=self._regions(given),
            warp_keys=warp_keys,
            warp_values=warp_values,
            modulation=self._modulation(given),
        )
        time = given["time"] if self.hoists.time else self.unet.time_projections(given["t"])
        return denoise(
            self.unet, given["x"], time, constants, guidance=self.variant.guidance, hoists=self.hoists.of_rows
        )

    def _keys_and_values(self, given: Given) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        if self.hoists.kv:
            return numbered(given, "key_"), numbered(given, "value_")
        if not self.variant.split:
            keys, values = self.unet.context_projections(given["context"])
            return keys, _scaled(values, given["strengths"])
        contexts = given["context"].chunk(2, dim=1)
        fg_keys, fg_values = self.unet.context_projections(contexts[0], "fg" if self.variant.lora_fg else None)
        bg_keys, bg_values = self.unet.context_projections(contexts[1], "bg" if self.variant.lora_bg else None)
        scaled_fg = _scaled(fg_values, given["strengths"] * given["fg_scale"])
        scaled_bg = _scaled(bg_values, given["strengths"] * given["bg_scale"])
        return _joined(fg_keys, bg_keys), _joined(scaled_fg, scaled_bg)

    def _regions(self, given: Given) -> Regions | None:
        if self.queries is None:
            return None
        places = places_with_regions(self.unet, self.variant)
        name = "foreground_{}".format
        foreground = {
            place.name: given[name(place.name)] if self.hoists.masks else self._foreground(given, place)
            for place in places
        }
        return Regions(foreground, self.queries, given.get("merge_scale"), attend=split_attend, project=split_project)

    def _foreground(self, given: Given, place: Place) -> Tensor:
        mask = resize_mask(given["mask"], place.scale).flatten(1)
        chosen = is_foreground(mask, selection=self.unet.selection(place), threshold=given["threshold"])  # type: ignore[arg-type]
        return chosen.to(mask.dtype)

    def _warp_keys_and_values(self, given: Given) -> tuple[Sequence[Tensor] | None, Sequence[Tensor] | None]:
        if not self.variant.warp:
            return None, None
        if self.hoists.warp:
            return numbered(given, "warp_key_"), numbered(given, "warp_value_")
        return self.unet.warp_projections(numbered(given, "map_"))

    def _modulation(self, given: Given) -> Tensor | None:
        if self.unet.config.generation != "v2":
            return None
        if self.hoists.style:
            return given["modulation"]
        embedding = given["embedding"] if self.hoists.time else self.unet.time_embedding(given["t"])
        vectors = torch.split(given["style"], list(self.unet.config.style_widths), dim=1)
        modules = zip(self.unet.style_modules, vectors, strict=True)
        # Without a style scale and shift are 0, whatever its vectors.
        return torch.cat([module(vector, embedding) for module, vector in modules], dim=1) * given["styled"]


def denoiser_signature(unet: UNet, variant: DenoiserVariant, hoists: DenoiserHoists) -> Signature:
    """What goes into a denoiser with these hoists, and the prediction."""
    dims = Dims(unet.config, ROWS_OF_PICTURES)
    inputs = (
        dims.latent("x", unet.config.latent_channels),
        *_time_specs(unet, dims, hoists),
        *hint_specs(_rows(dims, ROWS[variant.guidance].drawn)),
        *_context_specs(dims, variant, hoists),
        *(_region_specs(unet, dims, variant, hoists) if variant.split else ()),
        *_style_specs(dims, hoists),
        *(_warp_specs(dims, hoists) if variant.warp else ()),
    )
    prediction = _rows(dims, variant.slots).latent("prediction", unet.config.latent_channels)
    return Signature(inputs, (prediction,), dims.multiples)


def _rows(dims: Dims, times: int) -> Dims:
    return dims if times == 1 else Dims(dims.config, f"{times}*{dims.rows}")


def _time_specs(unet: UNet, dims: Dims, hoists: DenoiserHoists) -> tuple[TensorSpec, ...]:
    return (dims.spec("time", time_width(unet)),) if hoists.time else (dims.spec("t"),)


def _context_specs(dims: Dims, variant: DenoiserVariant, hoists: DenoiserHoists) -> tuple[TensorSpec, ...]:
    config, tokens = dims.config, context_tokens(dims, variant)
    if hoists.kv:
        return tuple(
            dims.spec(f"{name}_{index:02}", tokens, width)
            for name in ("key", "value")
            for index, width in enumerate(config.transformer_widths)
        )
    numbers = {"strengths": len(config.transformer_widths)} | dict.fromkeys(
        ("fg_scale", "bg_scale") if variant.split else (), 1
    )
    return (dims.spec("context", tokens, config.context_dim), *(_number(name, n) for name, n in numbers.items()))


def context_tokens(dims: Dims, variant: DenoiserVariant) -> int:
    """Tokens of a variant's context: of one picture, or of the foreground's and of the background's.

    In v1.5 each half holds both where both LoRAs act, as published.
    """
    both = dims.config.generation == "v1.5" and variant.lora_fg and variant.lora_bg
    return dims.config.tokens * (4 if both else 2 if variant.split else 1)


def _region_specs(unet: UNet, dims: Dims, variant: DenoiserVariant, hoists: DenoiserHoists) -> tuple[TensorSpec, ...]:
    merge = (_number("merge_scale", 1),) if variant.merge else ()
    if not hoists.masks:
        return (dims.latent("mask", 1), _number("threshold", 1), *merge)
    places = places_with_regions(unet, variant)
    return (*(dims.tokens(f"foreground_{place.name}", place.level) for place in places), *merge)


def places_with_regions(unet: UNet, variant: DenoiserVariant) -> tuple[Place, ...]:
    """Where regions are told apart: at every transformer, and with warped skips at every decoder block."""
    warped = unet.config.decoder_places if variant.warp else ()
    return tuple(dict.fromkeys((*unet.config.transformer_places, *warped)))


def _style_specs(dims: Dims, hoists: DenoiserHoists) -> tuple[TensorSpec, ...]:
    width = sum(dims.config.style_widths)
    if dims.config.generation != "v2":
        return ()
    if hoists.style:
        return (dims.spec("modulation", width),)
    embedding = (dims.spec("embedding", dims.config.time_width),) if hoists.time else ()
    return (dims.spec("style", width), *embedding, _number("styled", 1))


def _warp_specs(dims: Dims, hoists: DenoiserHoists) -> tuple[TensorSpec, ...]:
    maps = map_specs(dims)
    if not hoists.warp:
        return maps
    inner = dims.config.warp_widths or ()
    return tuple(
        TensorSpec(f"{name}_{index:02}", "float32", (*spec.dims[:2], str(width)))
        for name in ("warp_key", "warp_value")
        for index, (spec, width) in enumerate(zip(maps, inner, strict=True))
    )


def _number(name: str, count: int) -> TensorSpec:
    return TensorSpec(name, "float32", (str(count),))


def _scaled(values: Sequence[Tensor], strengths: Tensor) -> list[Tensor]:
    return [value * strength for value, strength in zip(values, strengths.unbind(), strict=True)]


def _joined(foreground: Sequence[Tensor], background: Sequence[Tensor]) -> list[Tensor]:
    return [torch.cat(halves, dim=1) for halves in zip(foreground, background, strict=True)]
