"""What this machine does at best, measured now: bytes copied and matrix operations, per second.

On a CPU with all cores, the fastest of several runs each:

- copies by torch of 512 MB, read and written, and of a quarter of that and so on down to 128 KB: what fits in a cache
  is copied faster, and a layer may find its inputs there. The ceiling of some bytes is the highest of the copies that
  are no smaller than the next one below.
- products in fp32, of which the highest counts: two matrices by torch, the same by ONNX Runtime, and 3x3 convolutions
  of ONNX Runtime in its own blocked layout at the sizes that suit it, which are above both.

On a GPU: :class:`gpu_clock.GpuClock`, in fp16 with sums in fp32. Operations outside matrix products have no measured
ceiling and bound nothing. A busy machine has low ceilings, so they are measured more than once, and the higher count:
:func:`higher`.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from gpu_clock import GpuClock
from roofline import Roofline, Work, roofline

REPEATS = 10
LEAST_COPY_BYTES = 128 << 10
GPU_COPY_BYTES = 2 << 30
CONVOLUTIONS = ((64, 64), (128, 32), (128, 16))
"""Channels in and out, height and width."""


@dataclass(frozen=True)
class MeasuredCeilings:
    """Bytes per second by bytes copied, read and written; matrix operations per second by what did them."""

    copies: Mapping[int, float]
    products: Mapping[str, float]

    def __post_init__(self) -> None:
        assert self.copies
        assert self.products

    def bandwidth(self, nbytes: int) -> float:
        """Bytes per second that no work on so many bytes exceeds."""
        below = max((size for size in self.copies if size <= nbytes), default=min(self.copies))
        return max(rate for size, rate in self.copies.items() if size >= below)

    @property
    def fastest_product(self) -> str:
        """The product that is the ceiling."""
        return max(self.products, key=self.products.__getitem__)

    @property
    def matrix_flops(self) -> float:
        """Matrix operations per second of the fastest product."""
        return self.products[self.fastest_product]


def measured_ceilings(device: str, *, nbytes: int = 256 << 20, size: int = 2048) -> MeasuredCeilings:
    """The ceilings of ``cpu`` or ``cuda``; on the CPU of copies of up to ``nbytes`` and matrices of ``size``."""
    if device == "cuda":
        found = GpuClock().ceilings()
        return MeasuredCeilings({GPU_COPY_BYTES: found.bandwidth}, {"torch fp16 matrix product": found.matrix_flops})
    return MeasuredCeilings(dict(_copies(nbytes)), dict(_products(size)))


def higher(a: MeasuredCeilings, b: MeasuredCeilings) -> MeasuredCeilings:
    """The higher of each ceiling."""
    return MeasuredCeilings(_higher(a.copies, b.copies), _higher(a.products, b.products))


def floor_of(work: Work, ceilings: MeasuredCeilings) -> Roofline:
    """The least time by measured ceilings."""
    bandwidth = ceilings.bandwidth(work.nbytes)
    return roofline(work, matrix_flops=ceilings.matrix_flops, vector_flops=math.inf, bandwidth=bandwidth)


def _higher(a: Mapping[Any, float], b: Mapping[Any, float]) -> dict[Any, float]:
    return {name: max(measured.get(name, 0.0) for measured in (a, b)) for name in dict.fromkeys((*a, *b))}


def _copies(nbytes: int) -> Iterator[tuple[int, float]]:
    size = nbytes
    while size == nbytes or 2 * size >= LEAST_COPY_BYTES:
        source = torch.arange(size // 4, dtype=torch.int32)
        target = torch.empty_like(source)
        # A small copy ends before the clock has ticked often, so it is timed by the dozen.
        times = max(1, min(100, (1 << 24) // size))
        copy_s = _least_s(lambda: [target.copy_(source) for _ in range(times)])  # noqa: B023
        yield 2 * size, 2 * size * times / copy_s
        size //= 4


def _products(size: int) -> Iterator[tuple[str, float]]:
    a, b = torch.rand(2, size, size)
    out = torch.empty(size, size)
    yield f"torch, {size} x {size} matrices", 2 * size**3 / _least_s(lambda: torch.mm(a, b, out=out))
    run = _onnxruntime_run("MatMul", a.numpy(), b.numpy())
    yield f"ONNX Runtime, {size} x {size} matrices", 2 * size**3 / _least_s(run)
    rng = np.random.default_rng(0)
    for channels, px in CONVOLUTIONS:
        x, weight = (rng.random(shape, np.float32) for shape in ((1, channels, px, px), (channels, channels, 3, 3)))
        run = _onnxruntime_run("Conv", x, weight, pads=[1, 1, 1, 1])
        # Padding included, as the layers are counted.
        flops = 2 * channels**2 * 9 * px**2
        yield f"ONNX Runtime, 3x3 convolution of {channels} channels, {px}x{px}", flops / _least_s(run)


def _onnxruntime_run(op: str, x: Any, weight: Any, **attributes: Any) -> Callable[[], Any]:
    """One operator on all cores with a constant weight, which ONNX Runtime lays out beforehand."""
    import onnxruntime

    node = onnx.helper.make_node(op, ["x", "weight"], ["y"], **attributes)
    given = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([node], op, [given], [result], [onnx.numpy_helper.from_array(weight, "weight")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})


def _least_s(run: Callable[[], Any]) -> float:
    run()
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)
