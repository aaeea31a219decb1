"""A ColorizeDiffusion denoiser's rows, as one call of a bundle's modules computes them from given conditions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saishiki.models.colorizediffusion.conditions import Conditions
from saishiki.models.colorizediffusion.guided_rows import Attending
from saishiki.runtime.pipelines.colorizediffusion import DenoiserVariant, Guidance, variants_of
from saishiki.runtime.pipelines.colorizediffusion.masks import foreground_levels
from saishiki.runtime.pipelines.colorizediffusion.modules import LazyModules
from saishiki.runtime.signature import Array
from tests.conformance import Case
from tests.conformance_runners.colorizediffusion.tiny_bundles import EXPORTED, bundle_of, generation_of, pipeline_of


def place_of(case: Case) -> tuple[str, DenoiserVariant] | None:
    """The part and the denoiser that answer a U-Net case; None where no mode calls the U-Net like that."""
    params, generation = case.params, generation_of(case)
    if params.get("decoder_lora_mode") not in (None, "none"):
        return None
    variant = variant_in(params, merge=params["merge_scale"] > 0, guidance="both")
    if variant in variants_of(generation, EXPORTED[generation, "main"].modes or (), ("both",), merge=True):
        return "main", variant
    unguided = replace(variant, guidance="none")
    foreground = EXPORTED.get((generation, "foreground"))
    if foreground and unguided in variants_of(generation, foreground.modes or (), ("none",), merge=False):
        return "foreground", unguided
    return None


def variant_in(params: Mapping[str, Any], *, merge: bool, guidance: Guidance) -> DenoiserVariant:
    if not params["split"]:
        return DenoiserVariant(guidance)
    loras = {name: bool(params.get(name)) for name in ("lora_fg", "lora_bg")}
    return DenoiserVariant(guidance, split=True, warp=bool(params.get("hs_bg")), merge=merge, **loras)


def rows_on_bundle(case: Case) -> Callable[..., Tensor]:
    """``predict_rows`` of the published network, computed by the bundle's modules."""
    generation = generation_of(case)

    def predict(_: Any, x: Tensor, t: Tensor, conditions: Conditions, *, guidance: Guidance, how: Attending) -> Tensor:
        merge = conditions.mask is not None and how.merge_scale > 0
        flags = {"split": conditions.mask is not None, "hs_bg": conditions.maps is not None}
        loras = {"lora_fg": conditions.lora_fg, "lora_bg": conditions.lora_bg}
        variant = variant_in({**flags, **loras}, merge=merge, guidance=guidance)
        on_main = replace(variant, guidance="both").module_name in bundle_of(generation, "main").manifest.modules
        modules = pipeline_of(generation, "main" if on_main else "foreground").modules
        given = Evaluation(modules, variant, conditions, how)
        denoiser = given.modules[variant.module_name]
        wanted = [spec.name for spec in denoiser.signature.inputs]
        made = given.inputs(x.numpy(), t.numpy().astype(np.float32))
        return torch.from_numpy(denoiser(**{name: made[name] for name in wanted})["prediction"])

    return predict


@dataclass(frozen=True)
class Evaluation:
    """One call of a denoiser, its inputs made by the bundle's own projectors."""

    modules: LazyModules
    variant: DenoiserVariant
    conditions: Conditions
    how: Attending

    def inputs(self, x: Array, t: Array) -> dict[str, Array]:
        tables = self.modules.call("time_projection", t=t)
        made = {"x": x, "time": tables["time"], **self._hints(), **self._keys_and_values()}
        made["merge_scale"] = np.array([self.how.merge_scale], np.float32)
        if self.conditions.mask is not None:
            mask = self.conditions.mask.numpy()
            made |= foreground_levels(mask, self.modules.generation, self.how.threshold)
        if self.modules.generation == "v2":
            made["modulation"] = self._modulation(tables["embedding"])
        return made | self._warp()

    def _hints(self) -> dict[str, Array]:
        parts = [self.conditions.hints]
        if self.variant.guidance in ("sketch", "both"):
            parts.append(self.conditions.blank_hints)
        return {f"hint_{i}": torch.cat([part[i] for part in parts]).numpy() for i in range(5)}

    def _keys_and_values(self) -> dict[str, Array]:
        context = self.conditions.context.numpy()
        if context.shape[1] == 1:
            # One zero token is no context, as any number of zero tokens is.
            assert not context.any()
            context = np.zeros((len(context), self.modules.token_shape[0], context.shape[2]), np.float32)
        if not self.variant.split:
            return self._projected(context, None, 1.0)
        # A context repeated is the same context: a denoiser for two contexts in each half takes one twice.
        copies = self._tokens // context.shape[1]
        fg, bg = (np.concatenate([half] * copies, axis=1) for half in np.split(context, 2, axis=1))
        halves = (
            self._projected(fg, "fg" if self.variant.lora_fg else None, self.how.fg_scale),
            self._projected(bg, "bg" if self.variant.lora_bg else None, self.how.bg_scale),
        )
        return {name: np.concatenate([half[name] for half in halves], axis=1) for name in halves[0]}

    @property
    def _tokens(self) -> int:
        (key,) = (s for s in self.modules[self.variant.module_name].signature.inputs if s.name == "key_00")
        return int(key.dims[1])

    def _projected(self, context: Array, region: str | None, scale: float) -> dict[str, Array]:
        name = "context_projector" + ("" if region is None else f"_{region}")
        rows = [self.modules.call(name, context=np.ascontiguousarray(row[None])) for row in context]
        projected = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
        strengths = self.how.strengths or (1.0,) * 16
        for block, strength in enumerate(strengths):
            projected[f"value_{block:02}"] = projected[f"value_{block:02}"] * np.float32(strength * scale)
        return projected

    def _modulation(self, embedding: Array) -> Array:
        """The rows' own: (B, .), of tables (B steps, one picture, .)."""
        if self.conditions.style is None:
            (spec,) = (s for s in self.modules[self.variant.module_name].signature.inputs if s.name == "modulation")
            return np.zeros(spec.shape({"batch": len(embedding)}), np.float32)
        style = torch.cat(self.conditions.style, dim=1).numpy()
        tables = [
            self.modules.call("style_projector", style=style[i : i + 1], embedding=embedding[i : i + 1])["modulation"]
            for i in range(len(style))
        ]
        return np.concatenate([table[0] for table in tables])

    def _warp(self) -> dict[str, Array]:
        if self.conditions.maps is None or not self.variant.warp:
            return {}
        rows = [
            self.modules.call(
                "warp_projector",
                **{f"map_{i:02}": m[row : row + 1].numpy() for i, m in enumerate(self.conditions.maps)},
            )
            for row in range(len(self.conditions.maps[0]))
        ]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
