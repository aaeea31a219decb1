"""Running a plan of the played frontend on arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from saishiki.runtime.backends.cudnn.operation import Operation
from saishiki.runtime.backends.cudnn.planner import Planner
from tests.runtime.backends.cudnn.played_frontend import PlayedFrontend


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Half precision memory at a multiple of 256, all NaN."""
    count = int(np.prod(shape))
    memory = np.full(2 * count + 256, 0xFF, np.uint8)
    start = -memory.ctypes.data % 256
    return memory[start : start + 2 * count].view(np.float16).reshape(shape)


def run(operation: Operation, arrays: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """What the first plan of an operation makes of dense arrays, in an output of NaN."""
    tensors = {name: aligned(array.shape) for name, array in arrays.items()} | {"y": aligned(shape)}
    for name, array in arrays.items():
        tensors[name][...] = array
    plan = Planner(PlayedFrontend().cudnn, 90).first_plan(operation)
    plan.execute(0, {name: tensor.ctypes.data for name, tensor in tensors.items()})
    return tensors["y"]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Random half precision numbers."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float16)


def exact(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The same numbers in fp64."""
    return {name: array.astype(np.float64) for name, array in arrays.items()}
