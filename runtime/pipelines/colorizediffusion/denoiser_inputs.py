"""The denoiser's inputs by name: whatever its signature asks for, and nothing that it does not.

Which inputs a denoiser has depends on the hoists it was exported with. One whose keys and values are computed outside
asks for ``key_00``; one that projects the context itself asks for ``context`` and ``strengths`` instead.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from saishiki.runtime.errors import BundleError
from saishiki.runtime.pipelines.colorizediffusion.conditions import Conditions
from saishiki.runtime.pipelines.colorizediffusion.encoders import Encoders, scaled
from saishiki.runtime.pipelines.colorizediffusion.masks import foreground_levels
from saishiki.runtime.pipelines.colorizediffusion.options import ColorizeDiffusionOptions
from saishiki.runtime.pipelines.colorizediffusion.scene import Scene, masks_of
from saishiki.runtime.pipelines.colorizediffusion.sketch import empty_sketch
from saishiki.runtime.pipelines.colorizediffusion.strengths import strengths_of_blocks, strengths_of_levels
from saishiki.runtime.pipelines.colorizediffusion.variants import DenoiserVariant, Generation
from saishiki.runtime.pipelines.reference_cache import Node
from saishiki.runtime.signature import Array, Signature, TensorSpec

Inputs = dict[str, Array]


@dataclass(frozen=True)
class DenoiserInputs:
    """Makes the inputs of one run: B pictures after one variant's denoiser."""

    signature: Signature
    variant: DenoiserVariant
    generation: Generation
    options: ColorizeDiffusionOptions
    encoders: Encoders
    scenes: Sequence[Scene]
    conditions: Sequence[Conditions]

    def constants(self) -> Inputs:
        """The inputs that stay the same over the run; raises ``BundleError`` for one that is not known."""
        made: Inputs = {}
        wanted = self._specs.keys() - _PER_STEP - {_STATE, *({"modulation"} if self.styled else ())}
        for name in sorted(wanted):
            if name not in made:
                made |= self._make(name)
        return {name: made[name] for name in wanted}

    def per_step(self, timesteps: Array) -> Inputs:
        """The inputs that go with an evaluation, (E, B or 1, ...)."""
        times = self.encoders.times(timesteps)
        made = {"t": timesteps[:, None].astype(np.float32)}
        if self._specs.keys() & {"time", "embedding"}:
            made |= {name: table[:, None] for name, table in self.encoders.cache(times).items()}
        if "modulation" in self._specs and self.styled:
            tables = [self._cached(self.encoders.modulation(style, times))["modulation"] for style in self._styles]
            made["modulation"] = np.concatenate([table.reshape(len(table), 1, -1) for table in tables], axis=1)
        return {name: rows for name, rows in made.items() if name in self._specs}

    @property
    def styled(self) -> bool:
        """Whether style vectors act in this run."""
        return self.conditions[0].style is not None

    @property
    def _specs(self) -> Mapping[str, TensorSpec]:
        return {spec.name: spec for spec in self.signature.inputs}

    @property
    def _styles(self) -> list[Node]:
        return [made.style for made in self.conditions if made.style is not None]

    def _cached(self, node: Node) -> Mapping[str, Array]:
        return self.encoders.cache(node)

    def _make(self, name: str) -> Inputs:
        for prefix, make in _MAKERS.items():
            if name.startswith(prefix):
                return make(self)
        raise BundleError(f"its denoiser takes an input {name!r}, which this Saishiki does not know; upgrade it")

    def _hints(self) -> Inputs:
        """Conditional rows first; behind them, where the sketch guides, those of the empty sketch."""
        height, width = self.scenes[0].size
        nodes = [self.encoders.hints(scene.sketch) for scene in self.scenes]
        if self.variant.guidance in ("sketch", "both"):
            empty = self.encoders.hints(empty_sketch(height=height, width=width).pixels)
            nodes += [empty] * len(self.scenes)
        return scaled(_stacked([self._cached(node) for node in nodes]), self.options.control_scale)

    def _keys_and_values(self) -> Inputs:
        halves = zip(*(made.contexts for made in self.conditions), strict=True)
        projected = [
            self._scaled(_stacked([self._cached(self.encoders.projected(node, region)) for node in nodes]), scale)
            for nodes, region, scale in zip(halves, self._regions, self._scales, strict=True)
        ]
        return _joined(projected, axis=1)

    def _scaled(self, projected: Inputs, scale: float) -> Inputs:
        """The values times their block's strength and their region's."""
        for block, strength in enumerate(self._strengths * np.float32(scale)):
            if strength != 1:
                projected[f"value_{block:02}"] = projected[f"value_{block:02}"] * strength
        return projected

    def _context(self) -> Inputs:
        halves = zip(*(made.contexts for made in self.conditions), strict=True)
        tokens = _joined([_stacked([self._cached(node) for node in nodes]) for nodes in halves], axis=1)
        return {"context": tokens["tokens"]}

    @property
    def _regions(self) -> tuple[str, ...]:
        if not self.variant.split:
            return ("base",)
        return ("fg" if self.variant.lora_fg else "base", "bg" if self.variant.lora_bg else "base")

    @property
    def _scales(self) -> tuple[float, ...]:
        """What the foreground's and the background's colours are multiplied by."""
        if not self.variant.split:
            return (1.0,)
        if self.generation != "v2" and self.options.region_strengths == "published":
            return 1.0, 1.0
        return self.options.foreground_strength, self.options.background_strength

    @property
    def _strengths(self) -> Array:
        blocks = self.options.block_strengths
        if blocks is not None:
            return strengths_of_blocks(blocks, published=self.options.block_order == "published")
        return strengths_of_levels(self.options.reference_strength, self.options.level_strengths)

    def _region_scales(self) -> Inputs:
        foreground, background = self._scales
        return {"fg_scale": _scalar(foreground), "bg_scale": _scalar(background)}

    def _masks(self) -> Inputs:
        return dict(foreground_levels(masks_of(self.scenes), self.generation, self.options.sketch_threshold))

    def _raw_masks(self) -> Inputs:
        return {"mask": masks_of(self.scenes), "threshold": _scalar(self.options.sketch_threshold)}

    def _no_modulation(self) -> Inputs:
        """Scale and shift of 0 leave the features as they are."""
        return {"modulation": np.zeros(self._specs["modulation"].shape({"batch": len(self.scenes)}), np.float32)}

    def _style(self) -> Inputs:
        """The style vectors where the denoiser projects them itself, and whether it shall."""
        if self.styled:
            style = _stacked([self._cached(node) for node in self._styles])["style"]
        else:
            style = np.zeros(self._specs["style"].shape({"batch": len(self.scenes)}), np.float32)
        return {"style": style, "styled": _scalar(float(self.styled))}

    def _maps(self) -> Inputs:
        return scaled(_stacked([self._cached(node) for node in self._map_nodes]), self.options.background_factor)

    def _warp(self) -> Inputs:
        factor = self.options.background_factor
        return _stacked([self._cached(self.encoders.warp(node, factor)) for node in self._map_nodes])

    @property
    def _map_nodes(self) -> list[Node]:
        return [made.maps for made in self.conditions if made.maps is not None]


def without_reference(constants: Inputs) -> Inputs:
    """The same inputs where the reference is off: zero context, which is values of zero."""
    closed = dict(constants)
    for name, array in constants.items():
        if name.startswith("value_") or name == "context":
            closed[name] = np.zeros_like(array)
    return closed


_STATE = "x"
_PER_STEP = frozenset({"time", "t", "embedding"})
_MAKERS: Mapping[str, Callable[[DenoiserInputs], Inputs]] = {
    "hint_": DenoiserInputs._hints,
    "key_": DenoiserInputs._keys_and_values,
    "value_": DenoiserInputs._keys_and_values,
    "context": DenoiserInputs._context,
    "strengths": lambda inputs: {"strengths": inputs._strengths},
    "fg_scale": DenoiserInputs._region_scales,
    "bg_scale": DenoiserInputs._region_scales,
    "merge_scale": lambda inputs: {"merge_scale": _scalar(inputs.options.merge_scale)},
    "foreground_": DenoiserInputs._masks,
    "mask": DenoiserInputs._raw_masks,
    "threshold": DenoiserInputs._raw_masks,
    "modulation": DenoiserInputs._no_modulation,
    "style": DenoiserInputs._style,
    "map_": DenoiserInputs._maps,
    "warp_": DenoiserInputs._warp,
}


def _scalar(value: float) -> Array:
    return np.array([value], np.float32)


def _stacked(parts: Sequence[Mapping[str, Array]]) -> Inputs:
    """The tensors of several pictures, one behind the other along the batch."""
    return _joined(parts, axis=0)


def _joined(parts: Sequence[Mapping[str, Array]], *, axis: int) -> Inputs:
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts], axis=axis) for name in parts[0]}
