"""Attention against its reference in fp64, on the GPU or under Triton's interpreter."""

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.kernels.attention import attention, attention_reference  # noqa: E402
from tests.kernels.drawing import DTYPES, assert_within_budget, draw  # noqa: E402

pytestmark = pytest.mark.usefixtures("nan_in_new_memory")


def operands(
    *,
    batch: int = 2,
    heads: int = 3,
    tokens: int = 37,
    keys: int = 29,
    head_dim: int = 32,
    dtype: str = "fp16",
    **how: Any,
) -> tuple[Any, Any, Any]:
    shapes = ((batch, heads, tokens, head_dim), *[(batch, heads, keys, head_dim)] * 2)
    return tuple(draw(*shape, seed=seed, dtype=DTYPES[dtype], **how) for seed, shape in enumerate(shapes))  # type: ignore[return-value]


def assert_as_good_as_torch(q: Any, k: Any, v: Any, *, scale: float | None = None, told: float | None = None) -> None:
    """``told``: another scale for the op alone; makes this fail."""
    truth = attention_reference(q.double(), k.double(), v.double(), scale=scale)
    out = attention(q, k, v, scale=scale if told is None else told)
    assert out.dtype == q.dtype
    assert out.is_contiguous()
    assert_within_budget(out, attention_reference(q, k, v, scale=scale), truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [32, 64, 80, 128])
def test_attention_of_released_head_dims(head_dim: int, dtype: str) -> None:
    assert_as_good_as_torch(*operands(head_dim=head_dim, dtype=dtype, keys=90, heads=1))


@pytest.mark.parametrize("head_dim", [1, 5, 24, 100])
def test_attention_of_other_head_dims(head_dim: int) -> None:
    assert_as_good_as_torch(*operands(head_dim=head_dim))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [129, 160, 512])
def test_attention_of_wide_heads(head_dim: int, dtype: str) -> None:
    assert_as_good_as_torch(*operands(head_dim=head_dim, dtype=dtype, batch=1, heads=2, tokens=66, keys=45))


@pytest.mark.parametrize("keys", [1, 31, 32, 33])
def test_attention_of_wide_heads_of_key_counts(keys: int) -> None:
    assert_as_good_as_torch(*operands(head_dim=512, batch=1, heads=1, tokens=3, keys=keys, mean=2.0), scale=0.1)


@pytest.mark.parametrize("keys", [1, 63, 64, 65, 130])
@pytest.mark.parametrize("tokens", [1, 64, 65])
def test_attention_of_token_counts(tokens: int, keys: int) -> None:
    assert_as_good_as_torch(*operands(batch=1, heads=2, tokens=tokens, keys=keys))


@pytest.mark.parametrize("scale", [0.0, 0.3, -1.0])
def test_attention_of_a_scale(scale: float) -> None:
    assert_as_good_as_torch(*operands(dtype="fp32"), scale=scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_of_a_large_mean(dtype: str) -> None:
    assert_as_good_as_torch(*operands(mean=6.0, dtype=dtype))


def test_attention_of_parts_of_a_packed_projection() -> None:
    """As AnimeDiffusion's: for every pixel the heads' q, k and v behind one another."""
    packed = draw(2, 41, 4, 3, 32, seed=0, dtype=torch.float16)
    q, k, v = packed.permute(3, 0, 2, 1, 4)
    assert not q.is_contiguous()
    assert_as_good_as_torch(q, k, v)


def test_attention_of_odd_strides() -> None:
    wide = draw(2, 3, 37, 33, seed=0, dtype=torch.float16)[..., :32]
    _, k, v = operands()
    assert wide.stride(2) % 8
    assert_as_good_as_torch(wide, k, v)


def test_attention_of_repeated_keys() -> None:
    q, k, v = operands()
    k, v = (x[:, :1].expand(-1, 3, -1, -1) for x in (k, v))
    assert k.stride(1) == 0
    assert_as_good_as_torch(q, k, v)


def test_attention_of_no_queries() -> None:
    q, k, v = operands(tokens=0)
    assert attention(q, k, v).shape == (2, 0, 3, 32)


@pytest.mark.parametrize("what", ["scale", "swapped", "key"])
def test_a_wrong_attention_is_seen(what: str) -> None:
    q, k, v = operands()
    wrong = {
        "scale": lambda: attention(q, k, v, scale=0.9 / 32**0.5),
        "swapped": lambda: attention(q, v, k),
        "key": lambda: attention(q, k[:, :, :-1], v[:, :, :-1]),
    }[what]
    truth = attention_reference(q.double(), k.double(), v.double())
    with pytest.raises(AssertionError):
        assert_within_budget(wrong(), attention_reference(q, k, v), truth)


def test_attention_is_one_node_of_a_compiled_graph() -> None:
    q, k, v = operands()
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    assert torch.equal(compiled(q, k, v), attention(q, k, v))


def test_attention_has_no_gradient() -> None:
    q, k, v = operands()
    with pytest.raises(NotImplementedError, match="attention has no gradient"):
        attention(q.requires_grad_(), k, v).sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": lambda q: q[0]}, ValueError, "expected q .B, heads, T, D. with D from 1 to 512"),
        ({"q": lambda q: q.repeat(1, 1, 1, 17)}, ValueError, "with D from 1 to 512, got .2, 3, 37, 544."),
        ({"q": lambda q: q.double()}, TypeError, "expected q in torch.float16 or"),
        ({"k": lambda k: k.float()}, TypeError, "expected k in torch.float16, got torch.float32"),
        ({"k": lambda k: k[:, :, :0]}, ValueError, "at least one key"),
        ({"k": lambda k: k[:, :2]}, ValueError, "expected k of shape .2, 3, 29, 32., got .2, 2, 29, 32."),
        ({"v": lambda v: v[:, :, 1:]}, ValueError, "expected v of shape .2, 3, 29, 32."),
        ({"v": lambda v: v.mT.contiguous().mT}, ValueError, "expected D innermost in v"),
        ({"scale": lambda scale: float("inf")}, ValueError, "expected a finite scale, got inf"),
    ],
)
def test_attention_refuses(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = dict(zip("qkv", operands(), strict=True)) | {"scale": None}
    for name, changed in change.items():
        given[name] = changed(given[name])
    with pytest.raises(error, match=message):
        attention(**given)
