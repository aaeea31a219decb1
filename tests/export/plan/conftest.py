"""From a small PyTorch module to its plan, and both run on the same inputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from saishiki.export.plan import LoweredPlan, lower_module
from saishiki.runtime.parity import relative_error
from saishiki.runtime.plan import interpret
from saishiki.runtime.signature import Array, Signature, Sizes, TensorSpec

TRACED = {"batch": 2, "height": 16, "width": 24, "tokens": 5}
RUN = {"batch": 3, "height": 8, "width": 24, "tokens": 7}


def signature_of(inputs: Mapping[str, tuple[str, ...]], outputs: Mapping[str, tuple[str, ...]]) -> Signature:
    """All in fp32."""
    specs = [tuple(TensorSpec(name, "float32", dims) for name, dims in each.items()) for each in (inputs, outputs)]
    return Signature(specs[0], specs[1], {})


@dataclass(frozen=True)
class Lowered:
    """A module, its signature and its plan."""

    module: nn.Module
    signature: Signature
    lowered: LoweredPlan

    @property
    def kinds(self) -> list[str]:
        """What is launched, in order."""
        return [str(op.__struct_config__.tag) for op in self.lowered.plan.ops]

    def draw(self, sizes: Sizes = RUN) -> dict[str, Array]:
        """Inputs at some sizes."""
        rng = np.random.default_rng(5)
        own = {symbol: sizes[symbol] for symbol in self.signature.symbols}
        return {spec.name: rng.standard_normal(spec.shape(own)).astype(np.float32) for spec in self.signature.inputs}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The plan's outputs."""
        weights = self.lowered.read_weights()
        for name, stored in self.lowered.weights.items():
            assert (weights[name].shape, weights[name].dtype.name) == (stored.spec.shape, stored.spec.dtype), name
        return interpret(self.lowered.plan, self.signature, weights, inputs)

    def error(self, sizes: Sizes = RUN) -> float:
        """The largest relative error of an output against the module in fp64."""
        inputs = self.draw(sizes)
        got = self.run(inputs)
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array).double() for name, array in inputs.items()}
            wanted = self.module.double()(**tensors)
        self.module.float()
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        names = [spec.name for spec in self.signature.outputs]
        return max(relative_error(got[name], want.numpy()) for name, want in zip(names, wanted, strict=True))


Lower = Callable[..., Lowered]


@pytest.fixture(scope="session")
def lower() -> Lower:
    """Lowers a module: ``lower(module, inputs, outputs, half=False)``, inputs and outputs by name with their dims."""

    def lowered(
        module: nn.Module,
        inputs: Mapping[str, tuple[str, ...]],
        outputs: Mapping[str, tuple[str, ...]],
        *,
        half: bool = False,
    ) -> Lowered:
        signature = signature_of(inputs, outputs)
        traced_at = {symbol: TRACED[symbol] for symbol in signature.symbols}
        return Lowered(module, signature, lower_module(module, signature, traced_at, "fp16" if half else "fp32"))

    return lowered
