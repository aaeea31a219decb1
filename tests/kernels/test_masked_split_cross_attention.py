"""Mask-guided cross-attention against its reference in fp64, on the GPU or under Triton's interpreter."""

import inspect
import math
import subprocess
import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.kernels.checks import INTERPRETED  # noqa: E402
from saishiki.kernels.masked_split_cross_attention import (  # noqa: E402
    SELECTIONS,
    SEMANTICS,
    VARIANTS,
    SplitSemantics,
    masked_split_cross_attention,
    masked_split_cross_attention_reference,
    token_order,
)
from saishiki.kernels.masked_split_cross_attention.variants import split_head_dim  # noqa: E402
from tests.kernels.drawing import DEVICE, DTYPES, MASKS, THRESHOLD, assert_within_budget, draw, mask_of  # noqa: E402

BATCH, TOKENS = 2, 70
TENSORS = ("q", "k", "v", "q_bg")
# One accumulator, or one per region.
WAYS: dict[str, dict[str, Any]] = {
    "hard": {},
    "merge": {"merge_scale": 0.3, "fg_scale": 0.8, "bg_scale": 1.5},
    "blend": {"selection": "blend"},
}

pytestmark = pytest.mark.usefixtures("nan_in_new_memory")


def case(
    *,
    mask: str = "random",
    dtype: str = "fp32",
    heads: int = 1,
    head_dim: int = 16,
    keys: int = 20,
    batch: int = BATCH,
    tokens: int = TOKENS,
    q_bg: bool = False,
    mean: float = 0.0,
    **options: Any,
) -> dict[str, Any]:
    """Arguments of the op."""
    drawn: dict[str, Any] = {"mean": mean, "dtype": DTYPES[dtype]}
    width = heads * head_dim
    rows = batch if options.get("kv_index") is None else 3
    arguments = {
        "q": draw(batch, tokens, width, seed=0, **drawn),
        "k": draw(rows, keys, width, seed=1, **drawn),
        "v": draw(rows, keys, width, seed=2, **drawn),
        "mask": mask_of(mask, batch, tokens),
        "heads": heads,
        "selection": "foreground_above",
    }
    if q_bg:
        arguments["q_bg"] = draw(batch, tokens, width, seed=3, **drawn)
    return arguments | options


def kv_index(*rows: int) -> Any:
    return torch.tensor(rows, dtype=torch.int32, device=DEVICE)


def in_fp64(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: x.double() if name in TENSORS and x is not None else x for name, x in arguments.items()}


def assert_as_good_as_torch(arguments: dict[str, Any], **wrong: Any) -> None:
    """The error against fp64 is at most twice that of plain torch at that dtype, plus a floor for numbers near 0.

    Args:
        wrong: what the op is told instead; makes this fail.
    """
    truth = masked_split_cross_attention_reference(**in_fp64(arguments))
    plain = masked_split_cross_attention_reference(**arguments)
    out = masked_split_cross_attention(**{**arguments, **wrong})
    assert out.dtype == arguments["q"].dtype
    assert_within_budget(out, plain, truth)


@pytest.mark.parametrize("merge_scale", [0.0, 0.3], ids=["split", "merge"])
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("mask", MASKS)
def test_masked_split_cross_attention_of_every_mask(mask: str, selection: str, merge_scale: float) -> None:
    scales = {"fg_scale": 0.7, "bg_scale": 1.3, "merge_scale": merge_scale, "reference_scale": 0.9}
    assert_as_good_as_torch(case(mask=mask, selection=selection, tokens=35, keys=12, **scales))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_masked_split_cross_attention_all_merged(selection: str) -> None:
    assert_as_good_as_torch(case(selection=selection, merge_scale=1.0))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [32, 64, 80, 128])
def test_masked_split_cross_attention_of_released_head_dims(head_dim: int, dtype: str, way: str) -> None:
    assert_as_good_as_torch(case(head_dim=head_dim, dtype=dtype, keys=90, tokens=40, **WAYS[way]))


@pytest.mark.parametrize("way", ["hard", "merge"])
@pytest.mark.parametrize("head_dim", [1, 5, 17, 24, 48, 100, 127])
def test_masked_split_cross_attention_of_other_head_dims(head_dim: int, way: str) -> None:
    assert_as_good_as_torch(case(head_dim=head_dim, heads=2, tokens=33, q_bg=True, **WAYS[way]))


@pytest.mark.parametrize("way", ["hard", "merge"])
@pytest.mark.parametrize("mask", ["halves", "random"])
@pytest.mark.parametrize(
    ("keys", "fg_tokens"), [(2, None), (3, 1), (3, 2), (66, 1), (66, 65), (196, None), (257, 128), (514, 256)], ids=str
)
def test_masked_split_cross_attention_of_key_counts(keys: int, fg_tokens: int | None, mask: str, way: str) -> None:
    assert_as_good_as_torch(case(keys=keys, fg_tokens=fg_tokens, mask=mask, batch=1, dtype="fp16", **WAYS[way]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tokens", [1, 63, 64, 65])
def test_masked_split_cross_attention_of_token_counts(tokens: int, way: str) -> None:
    assert_as_good_as_torch(case(tokens=tokens, head_dim=64, dtype="fp16", **WAYS[way]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_split_cross_attention_of_a_large_mean(dtype: str, way: str) -> None:
    assert_as_good_as_torch(case(mean=6.0, dtype=dtype, keys=90, tokens=40, head_dim=32, **WAYS[way]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_split_cross_attention_with_everything(dtype: str, way: str) -> None:
    options = {"q_bg": True, "kv_index": kv_index(2, -1, 0), "fg_tokens": 13, "heads": 3, "batch": 3, **WAYS[way]}
    assert_as_good_as_torch(case(dtype=dtype, tokens=35, **options, reference_scale=1.2))


@pytest.mark.parametrize("fg_scale", [0.0, -1.5])
@pytest.mark.parametrize("way", WAYS)
def test_masked_split_cross_attention_of_scales_from_0_down(way: str, fg_scale: float) -> None:
    assert_as_good_as_torch(case(**{**WAYS[way], "fg_scale": fg_scale}))


@pytest.mark.parametrize("way", WAYS)
def test_masked_split_cross_attention_reference_is_the_formula(way: str) -> None:
    arguments = in_fp64(case(mask="leaves_0_to_1", heads=2, q_bg=True, fg_tokens=7, reference_scale=0.9, **WAYS[way]))
    q, k, v, mask, q_bg = (arguments[name] for name in ("q", "k", "v", "mask", "q_bg"))
    merge, fg_scale, bg_scale = (
        WAYS[way].get(name, default) for name, default in (("merge_scale", 0.0), ("fg_scale", 1.0), ("bg_scale", 1.0))
    )
    for row in range(BATCH):
        for head in range(2):
            dims = slice(head * 16, head * 16 + 16)
            scores = [
                query[row, :, dims] @ k[row, keys, dims].T / math.sqrt(16)
                for query, keys in ((q, slice(0, 7)), (q_bg, slice(7, 20)))
            ]
            probabilities = [score.exp() / score.exp().sum(1, keepdim=True) for score in scores]
            fg = probabilities[0] @ v[row, :7, dims] * 0.9 * fg_scale
            bg = probabilities[1] @ v[row, 7:, dims] * 0.9 * bg_scale
            fg = fg * (1 - merge) + bg * merge
            share = mask[row, :, None].double() if way == "blend" else (mask[row, :, None] > THRESHOLD).double()
            expected = fg * share + bg * (1 - share)
            torch.testing.assert_close(masked_split_cross_attention_reference(**arguments)[row, :, dims], expected)


@pytest.mark.parametrize(("selection", "expected"), [("foreground_above", 2.0), ("background_below", 1.0)])
def test_masked_split_cross_attention_at_the_threshold(selection: str, expected: float) -> None:
    arguments = case(selection=selection)
    arguments["mask"].fill_(THRESHOLD)
    arguments["v"][:, :10], arguments["v"][:, 10:] = 1.0, 2.0
    torch.testing.assert_close(
        masked_split_cross_attention(**arguments), torch.full_like(arguments["q"], expected), rtol=1e-6, atol=0
    )


WRONG = {
    "threshold": {"threshold": 0.06},
    "rule": {"selection": "background_below"},
    "no_rule": {"selection": "blend"},
    "fg_scale": {"fg_scale": 0.71},
    "bg_scale": {"bg_scale": 1.31},
    "merge_scale": {"merge_scale": 0.31},
    "no_merge": {"merge_scale": 0.0},
    "reference_scale": {"reference_scale": 0.91},
    "fg_tokens": {"fg_tokens": 9},
    "q_bg": {"q_bg": None},
    "kv_index": {"kv_index": (1,)},
    "heads": {"heads": 1},
}


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("wrong", WRONG)
def test_masked_split_cross_attention_shows_a_wrong(wrong: str, dtype: str) -> None:
    scales = {"fg_scale": 0.7, "bg_scale": 1.3, "merge_scale": 0.3, "reference_scale": 0.9}
    mask = "at_threshold" if wrong == "rule" else "random"
    arguments = case(mask=mask, dtype=dtype, heads=2, batch=1, tokens=20, q_bg=True, kv_index=kv_index(0), **scales)
    assert_as_good_as_torch(arguments)
    told = {name: kv_index(*value) if name == "kv_index" else value for name, value in WRONG[wrong].items()}
    with pytest.raises(AssertionError):
        assert_as_good_as_torch(arguments, **told)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("region", ["fg", "bg"])
@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_masked_split_cross_attention_leaves_the_other_region_unread(region: str, way: str) -> None:
    tile = 64
    arguments = case(mask="halves", tokens=2 * tile, keys=70, dtype="fp16", **WAYS[way])
    poisoned = slice(0, 35) if region == "fg" else slice(35, 70)
    arguments["k"][:, poisoned] = arguments["v"][:, poisoned] = float("nan")
    out = masked_split_cross_attention(**arguments)
    # The foreground's tile takes some of the background where they are merged; NaN shows that the other tile was read.
    assert out[:, :tile].isnan().all() == (region == "fg" or way == "merge")
    assert out[:, tile:].isnan().all() == (region == "bg")
    assert out[:, :tile].isnan().any() == (region == "fg" or way == "merge")
    assert out[:, tile:].isnan().any() == (region == "bg")


@pytest.mark.parametrize(("way", "region"), [("merge", "fg"), ("blend", "fg"), ("blend", "bg")])
@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_masked_split_cross_attention_keeps_what_a_token_does_not_need_out_of_it(way: str, region: str) -> None:
    arguments = case(mask="checkerboard", fg_tokens=10, **WAYS[way])
    poisoned = slice(0, 10) if region == "fg" else slice(10, 20)
    arguments["k"][:, poisoned] = arguments["v"][:, poisoned] = float("nan")
    out = masked_split_cross_attention(**arguments)
    assert out[:, 1::2].isnan().all() == out[:, 1::2].isnan().any() == (region == "fg")
    assert out[:, ::2].isnan().all() == out[:, ::2].isnan().any() == (region == "bg")


@pytest.mark.parametrize("way", WAYS)
def test_masked_split_cross_attention_does_not_look_past_the_last_token(way: str) -> None:
    arguments = case(mask="per_row", tokens=65, batch=3, dtype="fp16", **WAYS[way])
    arguments["mask"] = 1.0 - arguments["mask"]
    # The last batch row is there to be looked at by mistake: to a token of NaN and another region.
    arguments["q"][2] = arguments["k"][2] = arguments["v"][2] = float("nan")
    two = {name: x[:2] if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    two["k"][1, :10] = two["v"][1, :10] = float("nan")
    out = masked_split_cross_attention(**two)
    assert not out.isnan().any()


@pytest.mark.skipif(not INTERPRETED, reason="counts the products in Triton's interpreter: needs TRITON_INTERPRET=1")
@pytest.mark.parametrize(
    ("mask", "way", "regions"),
    [
        ("empty", "hard", 2), ("full", "hard", 2), ("halves", "hard", 2), ("checkerboard", "hard", 4),
        ("empty", "blend", 2), ("full", "blend", 2), ("halves", "blend", 2), ("checkerboard", "blend", 4),
        ("empty", "merge", 2), ("full", "merge", 4), ("halves", "merge", 3), ("checkerboard", "merge", 4),
    ],
)  # fmt: skip
def test_masked_split_cross_attention_does_no_work_for_a_region_that_no_token_needs(
    mask: str, way: str, regions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    products = []
    plain = InterpreterBuilder.create_dot
    monkeypatch.setattr(InterpreterBuilder, "create_dot", lambda *a, **kw: products.append(0) or plain(*a, **kw))
    arguments = case(mask=mask, tokens=128, batch=1, keys=256, head_dim=64, dtype="fp16", **WAYS[way])
    masked_split_cross_attention(**arguments)
    # Two tiles of 64 tokens; of each region 128 keys in steps of 64, each with the product of the scores and that of v.
    assert len(products) == regions * 2 * 2


def test_masked_split_cross_attention_of_an_empty_context_reads_nothing() -> None:
    arguments = case(kv_index=kv_index(-1, 1))
    arguments["q"][0] = arguments["k"][0] = arguments["v"][0] = float("nan")
    out = masked_split_cross_attention(**arguments)
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    assert (out[1] != 0).all()


def test_masked_split_cross_attention_equals_a_context_of_zeros() -> None:
    arguments = case(kv_index=kv_index(0, 1))
    arguments["k"][0] = arguments["v"][0] = 0.0
    expected = masked_split_cross_attention(**arguments)
    assert torch.equal(masked_split_cross_attention(**{**arguments, **{"kv_index": kv_index(-1, 1)}}), expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["q", "v"])
def test_masked_split_cross_attention_keeps_nan(name: str, way: str) -> None:
    arguments = case(mask="leaves_0_to_1", **WAYS[way])
    arguments[name][1, 4] = float("nan")
    out = masked_split_cross_attention(**arguments)
    assert not out[0].isnan().any()
    assert out[1, 4].isnan().all() if name == "q" else out[1].isnan().any()


def test_masked_split_cross_attention_leaves_its_inputs_alone() -> None:
    arguments = case(q_bg=True, kv_index=kv_index(0, 1), merge_scale=0.5)
    tensors = [x for x in arguments.values() if isinstance(x, torch.Tensor)]
    copies = [x.clone() for x in tensors]
    masked_split_cross_attention(**arguments)
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))


@pytest.mark.parametrize("shape", [{"batch": 0}, {"tokens": 0}], ids=str)
def test_masked_split_cross_attention_of_nothing(shape: dict[str, int]) -> None:
    arguments = case(**shape)
    assert masked_split_cross_attention(**arguments).shape == arguments["q"].shape


class Split(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    """The op between others, for the graph tracers."""

    def forward(self, q: Any, k: Any, v: Any, mask: Any, index: Any) -> Any:
        return 2 * masked_split_cross_attention(q, k, v, mask, heads=2, selection="background_below", kv_index=index)


def graph_inputs(batch: int = 2, tokens: int = 5) -> tuple[Any, ...]:
    arguments = case(heads=2, batch=batch, tokens=tokens)
    return (*(arguments[name] for name in ("q", "k", "v", "mask")), kv_index(*range(batch)))


def test_masked_split_cross_attention_under_compile() -> None:
    inputs = graph_inputs()
    compiled = torch.compile(Split(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), Split()(*inputs), rtol=0, atol=0)


def test_masked_split_cross_attention_under_export() -> None:
    tokens, batch = torch.export.Dim("tokens", min=2), torch.export.Dim("batch", min=2)
    rows = {0: batch}
    shapes = ({0: batch, 1: tokens}, rows, rows, {0: batch, 1: tokens}, rows)
    program = torch.export.export(Split(), graph_inputs(), dynamic_shapes=shapes)
    nodes = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.saishiki.masked_split_cross_attention.default in nodes
    inputs = graph_inputs(batch=3, tokens=7)
    torch.testing.assert_close(program.module()(*inputs), Split()(*inputs), rtol=0, atol=0)


@pytest.mark.parametrize("index", [None, (0, -1)], ids=["rows", "kv_index"])
def test_masked_split_cross_attention_passes_the_checks_of_torch(index: tuple[int, ...] | None) -> None:
    arguments = case(tokens=5, kv_index=None if index is None else kv_index(*index))
    tensors = tuple(arguments[name] for name in ("q", "k", "v", "mask"))
    rest = (
        1,
        "blend",
        THRESHOLD,
        1.0,
        1.0,
        0.0,
        1.0,
        10,
        tensors[0].clone(),
        arguments["kv_index"],
        token_order(tensors[3]),
    )
    torch.library.opcheck(torch.ops.saishiki.masked_split_cross_attention.default, (*tensors, *rest))


def test_masked_split_cross_attention_refuses_a_gradient() -> None:
    arguments = case(tokens=5)
    arguments["q"].requires_grad_()
    with pytest.raises(NotImplementedError, match="saishiki::masked_split_cross_attention has no gradient"):
        masked_split_cross_attention(**arguments).sum().backward()


def bad_arguments() -> list[Any]:
    q, mask, index = torch.zeros(2, 6, 32), torch.zeros(2, 6), torch.zeros(2, dtype=torch.int32)
    k, odd = torch.zeros(2, 4, 32), torch.zeros(2, 5, 32)
    turned = torch.zeros(2, 32, 6).transpose(1, 2)
    wide = torch.zeros(2, 4, 129)
    nan, inf = float("nan"), float("inf")
    cases: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
        "q of rank 4": ({"q": q[None]}, ValueError, "expected q (B, tokens, heads * D), got (1, 2, 6, 32)"),
        "k of rank 2": ({"k": k[0]}, ValueError, "expected k (B, tokens, heads * D), got (4, 32)"),
        "no heads": ({"heads": 0}, ValueError, "expected heads to divide the width of q, got 0 heads"),
        "five heads": ({"heads": 5}, ValueError, "expected heads to divide the width of q, got 5 heads"),
        "wide heads": (
            {"q": torch.zeros(2, 6, 129), "k": wide, "v": wide, "heads": 1},
            ValueError,
            "expected heads of at most 128, got 129 (129 over 1 heads); call masked_split_cross_attention_reference",
        ),
        "q in fp64": ({"q": q.double()}, TypeError, "expected q in torch.float16 or torch.bfloat16 or torch.float32"),
        "k in fp16": ({"k": k.half()}, TypeError, "expected k in torch.float32, got torch.float16"),
        "v in bf16": ({"v": k.bfloat16()}, TypeError, "expected v in torch.float32, got torch.bfloat16"),
        "mask in fp16": ({"mask": mask.half()}, TypeError, "expected mask in torch.float32, got torch.float16"),
        "q_bg in fp16": ({"q_bg": q.half()}, TypeError, "expected q_bg in torch.float32, got torch.float16"),
        "k of another width": ({"k": k[..., :16]}, ValueError, "expected k of shape (2, 4, 32), got (2, 4, 16)"),
        "v of other keys": ({"v": k[:, :2]}, ValueError, "expected v of shape (2, 4, 32), got (2, 2, 32)"),
        "mask of other tokens": ({"mask": mask[:, :3]}, ValueError, "expected mask of shape (2, 6), got (2, 3)"),
        "mask of rank 3": ({"mask": mask[None]}, ValueError, "expected mask of shape (2, 6), got (1, 2, 6)"),
        "q_bg of other tokens": ({"q_bg": q[:, :3]}, ValueError, "expected q_bg of shape (2, 6, 32), got (2, 3, 32)"),
        "three rows of k": (
            {"k": torch.zeros(3, 4, 32)},
            ValueError,
            "expected k of 2 rows as q has, got 3; name the row of each in kv_index",
        ),
        "kv_index in int64": ({"kv_index": index.long()}, TypeError, "expected kv_index in torch.int32, got"),
        "kv_index of three": (
            {"kv_index": torch.zeros(3, dtype=torch.int32)},
            ValueError,
            "expected kv_index of shape (2,), got (3,)",
        ),
        "odd keys": (
            {"k": odd, "v": odd},
            ValueError,
            "expected an even number of keys where fg_tokens is None, got 5; give fg_tokens",
        ),
        "no foreground": ({"fg_tokens": 0}, ValueError, "expected fg_tokens from 1 to 3, got 0; each region"),
        "no background": ({"fg_tokens": 4}, ValueError, "expected fg_tokens from 1 to 3, got 4"),
        "no keys": ({"k": k[:, :0], "v": k[:, :0]}, ValueError, "expected at least 2 keys, one of each region, got 0"),
        "another selection": (
            {"selection": "soft"},
            ValueError,
            "expected selection to be one of 'foreground_above', 'background_below', 'blend', got 'soft'",
        ),
        "threshold nan": ({"threshold": nan}, ValueError, "expected threshold to be finite, got nan"),
        "fg_scale inf": ({"fg_scale": inf}, ValueError, "expected fg_scale to be finite, got inf"),
        "bg_scale nan": ({"bg_scale": nan}, ValueError, "expected bg_scale to be finite, got nan"),
        "reference_scale inf": ({"reference_scale": -inf}, ValueError, "expected reference_scale to be finite"),
        "merge_scale nan": ({"merge_scale": nan}, ValueError, "expected merge_scale to be finite, got nan"),
        "merge_scale 1.5": ({"merge_scale": 1.5}, ValueError, "expected merge_scale from 0 to 1, got 1.5"),
        "merge_scale -0.1": ({"merge_scale": -0.1}, ValueError, "expected merge_scale from 0 to 1, got -0.1"),
        "q not contiguous": ({"q": turned}, ValueError, "q is not contiguous; call .contiguous()"),
        "mask not contiguous": ({"mask": torch.zeros(6, 2).T}, ValueError, "mask is not contiguous"),
        "k elsewhere": ({"k": k.to("meta")}, ValueError, "expected k on cpu, got meta; move it"),
        "too many rows": (
            {
                "q": torch.zeros(32768, 1, 32, device=DEVICE),
                "k": torch.zeros(32768, 2, 32, device=DEVICE),
                "v": torch.zeros(32768, 2, 32, device=DEVICE),
                "mask": torch.zeros(32768, 1, device=DEVICE),
            },
            ValueError,
            "expected B * heads of at most 65535, got 65536; split the batch",
        ),
    }  # fmt: skip
    return [pytest.param(*case, id=name) for name, case in cases.items()]


@pytest.mark.parametrize(("wrong", "error", "message"), bad_arguments())
def test_masked_split_cross_attention_refuses(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {
        "q": torch.zeros(2, 6, 32),
        "k": torch.zeros(2, 4, 32),
        "v": torch.zeros(2, 4, 32),
        "mask": torch.zeros(2, 6),
        "heads": 2,
        "selection": "foreground_above",
    }
    with pytest.raises(error) as caught:
        masked_split_cross_attention(**{**arguments, **wrong})
    assert message in str(caught.value)


def test_masked_split_cross_attention_refuses_tensors_off_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saishiki.kernels.checks.INTERPRETED", False)
    arguments = {name: x.cpu() if isinstance(x, torch.Tensor) else x for name, x in case().items()}
    with pytest.raises(ValueError, match="expected tensors on a CUDA device, got one on cpu"):
        masked_split_cross_attention(**arguments)


SETTINGS = {"threshold": 0.2, "fg_scale": 0.5, "bg_scale": 0.7}


@pytest.mark.parametrize(
    ("family", "unmerged", "merging", "scaled"),
    [
        ("colorizediffusion-v1", "background_below", "background_below", True),
        ("colorizediffusion-v1.5", "foreground_above", "foreground_above", True),
        ("colorizediffusion-v2-encoder", "background_below", "background_below", True),
        ("colorizediffusion-v2-decoder", "foreground_above", "foreground_above", True),
        ("colorizediffusion-xl", "foreground_above", "background_below", False),
        ("colorizediffusion-xl-adapter", "blend", "blend", True),
    ],
)
def test_semantics_of(family: str, unmerged: str, merging: str, scaled: bool) -> None:
    scales = SETTINGS if scaled else {**SETTINGS, "fg_scale": 1.0, "bg_scale": 1.0}
    semantics = SEMANTICS[family]
    assert semantics.arguments(**SETTINGS, merge_scale=0.0) == {"selection": unmerged, "merge_scale": 0.0, **scales}
    assert semantics.arguments(**SETTINGS, merge_scale=0.4) == {"selection": merging, "merge_scale": 0.4, **SETTINGS}


def test_semantics_are_arguments_of_the_op() -> None:
    assert len(SEMANTICS) == 6
    for semantics in SEMANTICS.values():
        assert_as_good_as_torch(case(tokens=9, **semantics.arguments(**SETTINGS, merge_scale=0.4)))


def test_semantics_need_no_torch() -> None:
    path = inspect.getfile(SplitSemantics)
    code = f"import runpy, sys; runpy.run_path({path!r}); sys.exit('torch' in sys.modules or 'triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_split_head_dim_covers_every_width() -> None:
    widths = {d: split_head_dim(d) for d in range(1, 129)}
    assert all(main + tail >= d and main + tail < 2 * d + 16 for d, (main, tail) in widths.items())
    assert all(x == 0 or (x >= 16 and x & (x - 1) == 0) for pair in widths.values() for x in pair)
    assert {d: widths[d] for d in (32, 64, 80, 96, 100, 128)} == {
        32: (32, 0), 64: (64, 0), 80: (64, 16), 96: (64, 32), 100: (128, 0), 128: (128, 0),
    }  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_variant_is_complete(variant: Any) -> None:
    assert {*variant.signature, *variant.constexprs} == set(variant.kernel.arg_names)
    assert {name for names, _ in variant.grid for name in names} <= {*variant.signature}


REAL_SIZES = [(4096, 5, 64, 512), (16384, 5, 64, 514), (1024, 20, 64, 512), (4096, 8, 80, 514), (4096, 10, 32, 512)]
REAL_SIZES += [(4095, 10, 128, 512), (1023, 7, 40, 391)]


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "heads", "head_dim", "keys"),
    REAL_SIZES,
    ids=str,
)
def test_masked_split_cross_attention_on_the_gpu(
    tokens: int, heads: int, head_dim: int, keys: int, dtype: str, way: str
) -> None:
    assert DEVICE == "cuda"
    sizes = {"tokens": tokens, "heads": heads, "head_dim": head_dim, "keys": keys, "fg_tokens": keys // 2}
    for mask in ("halves", "random", "per_batch"):
        assert_as_good_as_torch(case(mask=mask, dtype=dtype, **sizes, **WAYS[way]))
    for mean in (0.0, 4.0):
        arguments = case(mask="thin_lines", dtype=dtype, q_bg=True, kv_index=kv_index(2, -1), **sizes, **WAYS[way])
        assert_as_good_as_torch({name: x + mean if name in TENSORS else x for name, x in arguments.items()})
