"""What every op asks of its arguments."""

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.kernels import checks  # noqa: E402
from saishiki.kernels.checks import check_runs_here, check_tensor  # noqa: E402

CPU = torch.device("cpu")
FP16 = (torch.float16,)


def test_check_runs_here_refuses_a_cpu_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "INTERPRETED", False)
    with pytest.raises(
        ValueError, match=r"scale: expected tensors on a CUDA device, got one on cpu; .*scale_reference"
    ):
        check_runs_here("scale", torch.zeros(1))


def test_check_runs_here_takes_a_cpu_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "INTERPRETED", True)
    check_runs_here("scale", torch.zeros(1))


def test_check_tensor_takes_what_fits() -> None:
    check_tensor("q", torch.zeros(2, 3, dtype=torch.float16), (2, 3), FP16, CPU)


@pytest.mark.parametrize(
    ("tensor", "error", "message"),
    [
        (torch.zeros(2, 3), TypeError, "expected q in torch.float16, got torch.float32"),
        (torch.zeros(3, 2).half(), ValueError, r"expected q of shape \(2, 3\), got \(3, 2\)"),
        (torch.zeros(3, 2).half().T, ValueError, r"q is not contiguous; call \.contiguous\(\)"),
        (torch.zeros(2, 3, device="meta").half(), ValueError, "expected q on cpu, got meta; move it"),
    ],
    ids=["dtype", "shape", "gaps", "device"],
)
def test_check_tensor_refuses(tensor: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_tensor("q", tensor, (2, 3), FP16, CPU)
