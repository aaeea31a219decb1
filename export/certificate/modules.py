"""Modules on probes: the inputs and outputs to store, and what rounding to fp16 does to the outputs."""

import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from saishiki.export.certificate.budgets import budget_of
from saishiki.export.certificate.sizes import is_large, reduced
from saishiki.export.drawings import draw_pairs
from saishiki.export.precision import RoundedToHalf, islands_of
from saishiki.models.family import LoadedModel
from saishiki.runtime.manifest import ParityRow, Precision
from saishiki.runtime.parity import relative_error
from saishiki.runtime.signature import Array, Sizes, multiples_of

SMALL_PX = 64
"""Side of the pictures for modules that take none."""
SEED = 20240107


@dataclass(frozen=True)
class RoundingErrors:
    """How far rounding to fp16 takes a module from its own fp32 outputs, as relative errors.

    They hardly depend on the size of the pictures, and rounding costs more than computing: unless ``thorough``, large
    pictures are measured by small ones.
    """

    model: LoadedModel
    name: str
    kept_fp32: tuple[str, ...]
    thorough: bool = field(kw_only=True)
    _known: dict[tuple[tuple[str, int], ...], float] = field(default_factory=dict)

    def at(self, sizes: Sizes, inputs: Mapping[str, Tensor], outputs: tuple[Tensor, ...]) -> float:
        """The largest error of any output at these sizes; inputs and outputs: those at the sizes."""
        if self.thorough or not is_large(sizes):
            return self._of(inputs, outputs)
        small = {**sizes, **reduced(sizes, multiples_of(self.model.signatures.values()))}
        small = {symbol: small[symbol] for symbol in sizes}
        key = tuple(small.items())
        if key not in self._known:
            self._known[key] = self._of(*_probe(self.model, self.name, small))
        return self._known[key]

    def _of(self, inputs: Mapping[str, Tensor], outputs: tuple[Tensor, ...]) -> float:
        return rounded_error(self.model.modules[self.name], islands_of(self.name, self.kept_fp32), inputs, outputs)


def record_module(
    model: LoadedModel,
    name: str,
    sizes: Sizes,
    errors: RoundingErrors,
    vectors: MutableMapping[str, Array],
    precisions: tuple[Precision, ...],
    *,
    budget: float,
) -> list[ParityRow]:
    """Stores what a module makes of a probe, and gives the rows that are to be measured by it.

    Args:
        budget: the family's, of fp32 graphs.
    """
    signature = model.signatures[name]
    key = f"{name}/" + "x".join(str(sizes[symbol]) for symbol in signature.symbols)
    inputs, outputs = _probe(model, name, sizes)
    vectors.update({f"{key}/in/{input_name}": tensor.numpy() for input_name, tensor in inputs.items()})
    for spec, output in zip(signature.outputs, outputs, strict=True):
        vectors[f"{key}/out/{spec.name}"] = output.numpy()
    rounded = errors.at(sizes, inputs, outputs) if "fp16" in precisions else 0.0
    return [
        ParityRow(
            module=name,
            precision=precision,
            vectors=key,
            sizes=dict(sizes),
            error=math.inf,
            max_abs=math.inf,
            budget=budget_of(precision, rounded, fp32=budget),
            reference_fp16=rounded,
            passed=False,
        )
        for precision in precisions
    ]


def _probe(model: LoadedModel, name: str, sizes: Sizes) -> tuple[Mapping[str, Tensor], tuple[Tensor, ...]]:
    """A module's inputs at these sizes, and what the reference makes of them."""
    picture = sizes.get("batch", 1), sizes.get("height", SMALL_PX), sizes.get("width", SMALL_PX)
    with torch.inference_mode():
        inputs = model.probe(name, sizes, *draw_pairs(*picture, seed=SEED))
        return inputs, outputs_of(model.modules[name], inputs)


def outputs_of(module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """A module's outputs in the order of its signature; a module with one output gives the tensor itself."""
    output = module(**inputs)
    return (output,) if isinstance(output, Tensor) else tuple(output)


def rounded_error(
    module: nn.Module, islands: tuple[str, ...], inputs: Mapping[str, Tensor], outputs: tuple[Tensor, ...]
) -> float:
    """The largest relative error that rounding to fp16 makes in any output; NaN where one overflows."""
    with torch.inference_mode():
        rounded = outputs_of(RoundedToHalf(module, islands), inputs)
    pairs = zip(rounded, outputs, strict=True)
    # numpy's max keeps a NaN, which Python's may lose.
    return float(np.max([relative_error(got.numpy(), want.numpy()) for got, want in pairs]))
