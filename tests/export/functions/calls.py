"""Networks of calls of our ops, their graphs, and the budget that their results must keep."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install 'saishiki[cpu]'")

import onnx  # noqa: E402
import onnx_ir as ir  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from saishiki.export.half_graph import half_graph  # noqa: E402
from saishiki.export.onnx_graph import trace, write_graph  # noqa: E402
from saishiki.runtime.signature import Signature, Sizes  # noqa: E402

FLOOR = 1e-6
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
THRESHOLD = float(np.float32(0.3))


class Calls(torch.nn.Module):
    """Calls an op once per set of options, on the same tensors; traced, one node and one output each."""

    def __init__(self, op: Callable[..., Any], calls: Mapping[str, Any]) -> None:
        super().__init__()
        self.op, self.calls = op, calls

    def forward(self, a: Any, b: Any, c: Any, d: Any, e: Any = None) -> tuple[Any, ...]:
        tensors = (a, b, c, d) if e is None else (a, b, c, d, e)
        return tuple(self.op(tensors, **call) for call in self.calls.values())


def written(model: ir.Model, signature: Signature, folder: Path, precision: str) -> Path:
    """The graph on disk in fp32 or fp16, after ONNX's checker and its shape inference."""
    path = folder / f"{precision}.onnx"
    graph = model.clone() if precision == "fp32" else half_graph(model, keep_fp32=())
    write_graph(graph, signature, path)
    onnx.checker.check_model(path, full_check=True)
    onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True)
    return path


def traced(op: Callable[..., Any], calls: Mapping[str, Any], signature: Signature, sizes: Sizes) -> ir.Model:
    return trace(Calls(op, calls), signature, sizes)


def run_graph(path: Path | bytes, tensors: Mapping[str, Any]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {name: tensor.float().numpy() for name, tensor in tensors.items()})
    names = (output.name for output in session.get_outputs())
    return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}


def masks(batch: int, height: int, width: int) -> dict[str, Any]:
    """(B, T) fp32 by name; the ones near the threshold are the threshold and its neighbours."""
    empty = torch.zeros(batch, height, width)
    lines, per_row = empty.clone(), empty.clone()
    lines[:, height // 2], lines[:, :, 1] = 1, 1
    for row in range(batch):
        per_row[row, :, : row * width // max(1, batch - 1)] = 1
    board = (torch.arange(height)[:, None] + torch.arange(width)) % 2
    generator = torch.Generator().manual_seed(5)
    steps = torch.randint(-3, 4, (batch, height, width), generator=generator)
    near = torch.tensor(THRESHOLD) + steps * 2.0**-25
    found = {
        "empty": empty,
        "full": empty + 1,
        "lines": lines,
        "checkerboard": board.float().expand(batch, -1, -1),
        "per row": per_row,
        "near the threshold": near,
        "beyond 0 and 1": torch.randn(batch, height, width, generator=generator),
    }
    return {name: mask.flatten(1).contiguous() for name, mask in found.items()}


def draw(*shape: int, seed: int, mean: float = 0.0) -> Any:
    """Random numbers that fp16 holds exactly."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + mean
    return numbers.half().float()


@contextmanager
def rounding_every_step() -> Iterator[None]:
    """torch's attention, scores and probabilities rounded to fp16, as ONNX Runtime's does on a CPU."""
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)


def excess(got: Any, reference: Callable[..., Any], tensors: Sequence[Any], precision: str, **options: Any) -> float:
    """How much of the budget an error takes: twice that of torch at the dtype, plus a floor; more than 1 is too much.

    The last tensor is the mask, which no dtype rounds.
    """
    dtype = DTYPES[precision]
    *data, mask = tensors
    truth = reference(*(tensor.double() for tensor in data), mask, **options)
    with rounding_every_step():
        plain = reference(*(tensor.to(dtype) for tensor in data), mask, **options)
    assert not got.isnan().any()
    budget = 2 * (plain - truth).abs().max() + FLOOR * max(1.0, float(truth.abs().max()))
    return float((got - truth).abs().max() / budget)
