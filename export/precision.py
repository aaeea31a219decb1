"""The fp16 policy: which submodules must stay in fp32, decided by measuring real activations."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from saishiki.models.streaming import SubstitutedWeights, value_of

FP16_MAX = 65504.0
HEADROOM = 8.0
"""An activation may grow this many times beyond the largest one seen before it overflows."""


@dataclass(frozen=True)
class RangeScan:
    """The largest absolute output of every submodule over the probed inputs, by qualified name; ``""`` is the whole."""

    largest: Mapping[str, float]

    def peak(self) -> tuple[str, float]:
        """The submodule with the largest output, and that output."""
        name = max(self.largest, key=lambda name: self.largest[name])
        return name, self.largest[name]


def scan_ranges(module: nn.Module, calls: Iterable[Mapping[str, Tensor]]) -> RangeScan:
    """Runs the module on every call's inputs and keeps the largest absolute output of every submodule.

    A weight that fp16 cannot hold counts as an output. Raises ``ValueError`` where an output is NaN or infinite.
    """
    largest: dict[str, float] = {}

    def hook(name: str) -> Any:
        def record(_: nn.Module, __: Any, output: Any) -> None:
            value = _largest(output)
            if not math.isfinite(value):
                raise ValueError(
                    f"{name or type(module).__name__} gives NaN or infinite values in fp32, on ordinary pictures: "
                    "the checkpoint is of no use, take an earlier one"
                )
            largest[name] = max(largest.get(name, 0.0), value)

        return record

    handles = [submodule.register_forward_hook(hook(name)) for name, submodule in module.named_modules()]
    try:
        with torch.inference_mode():
            for inputs in calls:
                module(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    for name in largest:
        weights = [_largest(value_of(weight)) for weight in module.get_submodule(name).parameters(recurse=False)]
        largest[name] = max([largest[name], *(weight for weight in weights if weight > FP16_MAX)])
    return RangeScan(largest)


def _largest(output: Any) -> float:
    """The largest absolute value among the float tensors of an output; NaN where there is one, 0 where it has none."""
    floats = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return float(torch.stack([tensor.abs().amax() for tensor in floats]).amax()) if floats else 0.0


def fp32_modules(scan: RangeScan) -> tuple[str, ...]:
    """The submodules to keep in fp32: around every output that fp16 cannot hold, the smallest whose own output fits."""
    limit = FP16_MAX / HEADROOM
    kept = set()
    for name, value in scan.largest.items():
        while value > limit and name:
            name = name.rpartition(".")[0]
            value = scan.largest.get(name, value)
            if value <= limit or not name:
                kept.add(name)
    return tuple(sorted(name for name in kept if not any(_is_inside(name, other) for other in kept - {name})))


def _is_inside(name: str, other: str) -> bool:
    return other == "" or name.startswith(other + ".")


def islands_of(name: str, kept: Iterable[str]) -> tuple[str, ...]:
    """The names within module ``name`` among those kept in fp32; ``""`` where it is kept as a whole."""
    return tuple(other[len(name) + 1 :] for other in kept if f"{other}.".startswith(f"{name}."))


class _RoundToHalf(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        return output if self.paused else _rounded(output)


def _rounded(output: Any) -> Any:
    if isinstance(output, (tuple, list)):
        return type(output)(_rounded(item) for item in output)
    if isinstance(output, Tensor) and output.dtype == torch.float32:
        return output.half().float()
    return output


class RoundedToHalf(nn.Module):
    """A module with its weights, and every fp32 result of every operation in it, rounded to fp16.

    This is what fp16 storage costs the reference itself, and so the yardstick for an fp16 engine: PyTorch's own fp16
    arithmetic on a CPU is both less exact than a GPU's and hundreds of times slower. Of the submodules in ``keep_fp32``
    only what comes out is rounded. Weights are rounded when they are used, so that the module itself stays as it is.
    """

    def __init__(self, module: nn.Module, keep_fp32: Iterable[str] = ()) -> None:
        super().__init__()
        self.module = module
        self._rounding = _RoundToHalf()
        self._islands = [module.get_submodule(name) for name in keep_fp32]
        self._kept = {parameter for island in self._islands for parameter in island.parameters()}

    def forward(self, **inputs: Tensor) -> Any:
        with self._hooked_islands(), self._rounding, SubstitutedWeights(self._weight, nn.Parameter):
            return self.module(**inputs)

    def _weight(self, parameter: nn.Parameter) -> Tensor:
        paused, self._rounding.paused = self._rounding.paused, True
        value = value_of(parameter)
        self._rounding.paused = paused
        return value if parameter in self._kept else value.half().float()

    @contextmanager
    def _hooked_islands(self) -> Iterator[None]:
        enter = [island.register_forward_pre_hook(self._enter) for island in self._islands]
        leave = [island.register_forward_hook(self._leave) for island in self._islands]
        try:
            yield
        finally:
            for hook in enter + leave:
                hook.remove()

    def _enter(self, _: nn.Module, __: Any) -> None:
        self._rounding.paused = True

    def _leave(self, _: nn.Module, __: Any, output: Any) -> Any:
        self._rounding.paused = False
        return _rounded(output)
