"""Ops in ``torch.ops.saishiki``, shown on one made for the purpose."""

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.kernels.registration import register_op  # noqa: E402


def _double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@pytest.fixture(scope="module")
def double() -> Iterator[Any]:
    yield register_op("double_for_a_test", _double, torch.empty_like)
    del torch.ops.saishiki.double_for_a_test


def test_op_runs_under_its_name(double: Any) -> None:
    x = torch.arange(3.0)
    assert torch.equal(double(x), 2 * x)
    assert torch.equal(torch.ops.saishiki.double_for_a_test(x), 2 * x)


def test_op_is_one_node_of_a_compiled_graph(double: Any) -> None:
    compiled = torch.compile(lambda x: double(x) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(torch.arange(3.0)), torch.tensor([1.0, 3.0, 5.0]))


def test_op_passes_the_checks_of_torch(double: Any) -> None:
    torch.library.opcheck(double, (torch.arange(3.0),))


def test_op_refuses_a_gradient(double: Any) -> None:
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(
        NotImplementedError, match="saishiki::double_for_a_test has no gradient: it is made for inference"
    ):
        double(x).sum().backward()


def test_op_runs_where_kernels_do(double: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saishiki.kernels.checks.INTERPRETED", False)
    with pytest.raises(ValueError, match="double_for_a_test: expected tensors on a CUDA device, got one on cpu"):
        double(torch.ones(3))


def test_op_is_traced_anywhere(double: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = double(x)
            return result

    monkeypatch.setattr("saishiki.kernels.checks.INTERPRETED", False)
    program = torch.export.export(Doubled(), (torch.ones(3),))
    assert "double_for_a_test" in str(program.graph)
