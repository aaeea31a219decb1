"""Tokens taken in the order of their masks: the same results, from tiles of one region."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.kernels import masked_split_cross_attention, split_projection, token_order  # noqa: E402
from saishiki.kernels.checks import INTERPRETED  # noqa: E402
from tests.kernels.drawing import DEVICE, draw  # noqa: E402

BATCH, TOKENS, WIDTH, KEYS = 2, 150, 64, 128
WAYS = {"hard": {}, "merge": {"merge_scale": 0.3}, "blend": {"selection": "blend"}}
HALF = torch.float16

pytestmark = pytest.mark.usefixtures("nan_in_new_memory")


def checkerboard(tokens: int = TOKENS) -> Any:
    return (torch.arange(tokens) % 2).float().expand(BATCH, tokens).contiguous().to(DEVICE)


def random_mask() -> Any:
    return torch.rand(BATCH, TOKENS, generator=torch.Generator().manual_seed(9)).to(DEVICE)


def shuffled() -> Any:
    rows = [torch.randperm(TOKENS, generator=torch.Generator().manual_seed(seed)) for seed in range(BATCH)]
    return torch.stack(rows).to(DEVICE, torch.int32)


def attend(mask: Any, **options: Any) -> Any:
    tokens = mask.shape[1]
    q, k, v = (draw(BATCH, count, WIDTH, seed=seed, dtype=HALF) for seed, count in enumerate((tokens, KEYS, KEYS)))
    way = {"selection": "foreground_above", "threshold": 0.5, **options}
    return masked_split_cross_attention(q, k, v, mask, heads=1, **way)


def project(mask: Any, **options: Any) -> Any:
    x, w_fg, w_bg = (
        draw(BATCH, mask.shape[1], WIDTH, seed=0, dtype=HALF),
        draw(WIDTH, WIDTH, seed=1, dtype=HALF),
        draw(WIDTH, WIDTH, seed=2, dtype=HALF),
    )
    return split_projection(x, w_fg, w_bg, mask, selection="foreground_above", threshold=0.5, **options)


OPS: dict[str, Callable[..., Any]] = {"attention": attend, "projection": project}


def test_token_order_sorts_by_mask_and_place() -> None:
    mask = torch.tensor([[0.5, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.25]], device=DEVICE)
    order = token_order(mask)
    assert order.dtype == torch.int32
    assert order.tolist() == [[1, 3, 0, 2], [2, 3, 0, 1]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_order_changes_no_attention(order: str, way: str) -> None:
    mask = random_mask()
    given = token_order(mask) if order == "sorted" else shuffled()
    torch.testing.assert_close(attend(mask, order=given, **WAYS[way]), attend(mask, **WAYS[way]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_order_changes_no_projection(order: str) -> None:
    mask = random_mask()
    given = token_order(mask) if order == "sorted" else shuffled()
    torch.testing.assert_close(project(mask, order=given), project(mask), rtol=1e-3, atol=1e-3)


def test_order_leaves_an_empty_context_empty() -> None:
    index = torch.tensor([-1, 0], dtype=torch.int32, device=DEVICE)
    out = attend(random_mask(), order=shuffled(), kv_index=index)
    assert not out[0].any()
    assert out[1].isfinite().all()


@pytest.mark.parametrize("op", OPS)
def test_token_that_an_order_leaves_out_is_not_written(op: str) -> None:
    order = token_order(random_mask())
    order[1, 7] = order[1, 8]
    out = OPS[op](random_mask(), order=order)
    assert out.isnan().any(2).sum() == 1


@pytest.mark.skipif(not INTERPRETED, reason="counts the products in Triton's interpreter: needs TRITON_INTERPRET=1")
@pytest.mark.parametrize(
    ("op", "options", "products"),
    # 2 rows of 2 tiles; a tile's attention to a region is 2 products for 64 keys, its projection 1.
    [("attention", {}, 8), ("attention", WAYS["merge"], 12), ("projection", {}, 4)],
    ids=["attention", "merge", "projection"],
)
def test_order_saves_the_other_region(
    op: str, options: dict[str, Any], products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    done: list[int] = []
    plain = InterpreterBuilder.create_dot
    monkeypatch.setattr(InterpreterBuilder, "create_dot", lambda *a, **kw: done.append(0) or plain(*a, **kw))
    mask = checkerboard(128)
    OPS[op](mask, order=token_order(mask), **options)
    assert len(done) == products
    done.clear()
    OPS[op](mask, **options)
    assert len(done) == (16 if op == "attention" else 8)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("order", "error", "message"),
    [
        (torch.zeros(BATCH, TOKENS, dtype=torch.int64), TypeError, "expected order in torch.int32, got torch.int64"),
        (torch.zeros(BATCH, 3, dtype=torch.int32), ValueError, r"expected order of shape \(2, 150\), got \(2, 3\)"),
        (torch.zeros(TOKENS, BATCH, dtype=torch.int32).T, ValueError, "order is not contiguous"),
    ],
    ids=["dtype", "shape", "gaps"],
)
def test_order_is_checked(op: str, order: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        OPS[op](random_mask(), order=order.to(DEVICE))


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
@pytest.mark.parametrize("way", WAYS)
def test_order_on_the_gpu(way: str) -> None:
    mask = torch.rand(BATCH, 16384, generator=torch.Generator().manual_seed(9)).to(DEVICE)
    sorted_, plain = attend(mask, order=token_order(mask), **WAYS[way]), attend(mask, **WAYS[way])
    torch.testing.assert_close(sorted_, plain, rtol=2e-3, atol=2e-3)
