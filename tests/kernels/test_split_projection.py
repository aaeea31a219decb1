"""The linear layer with two weights against its reference in fp64, on the GPU or under Triton's interpreter."""

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.kernels.checks import INTERPRETED  # noqa: E402
from saishiki.kernels.masked_split_cross_attention import masked_split_cross_attention, token_order  # noqa: E402
from saishiki.kernels.split_projection import (  # noqa: E402
    VARIANTS,
    split_projection,
    split_projection_reference,
)
from tests.kernels.drawing import DEVICE, DTYPES, MASKS, THRESHOLD, assert_within_budget, draw, mask_of  # noqa: E402

SELECTIONS = ["foreground_above", "background_below"]
TENSORS = ("x", "w_fg", "w_bg")

pytestmark = pytest.mark.usefixtures("nan_in_new_memory")


def case(
    *,
    mask: str = "random",
    dtype: str = "fp32",
    batch: int = 2,
    tokens: int = 35,
    width: int = 40,
    out_width: int = 24,
    mean: float = 0.0,
    selection: str = "foreground_above",
    threshold: float = THRESHOLD,
) -> dict[str, Any]:
    """Arguments of the op."""
    drawn: dict[str, Any] = {"dtype": DTYPES[dtype], "mean": mean}
    return {
        "x": draw(batch, tokens, width, seed=0, **drawn),
        "w_fg": draw(out_width, width, seed=1, **drawn),
        "w_bg": draw(out_width, width, seed=2, **drawn),
        "mask": mask_of(mask, batch, tokens),
        "selection": selection,
        "threshold": threshold,
    }


def assert_as_good_as_torch(arguments: dict[str, Any], **wrong: Any) -> None:
    """The error against fp64 is at most twice that of plain torch at that dtype, plus a floor for numbers near 0.

    Args:
        wrong: what the op is told instead; makes this fail.
    """
    in_fp64 = {name: x.double() if name in TENSORS else x for name, x in arguments.items()}
    truth = split_projection_reference(**in_fp64)
    plain = split_projection_reference(**arguments)
    out = split_projection(**{**arguments, **wrong})
    assert out.dtype == arguments["x"].dtype
    assert_within_budget(out, plain, truth)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("mask", MASKS)
def test_split_projection_of_every_mask(mask: str, selection: str) -> None:
    assert_as_good_as_torch(case(mask=mask, selection=selection))


@pytest.mark.parametrize("mean", [0.0, 8.0], ids=["centred", "large_mean"])
@pytest.mark.parametrize("mask", ["per_row", "random"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_split_projection_of_dtypes(dtype: str, mask: str, mean: float) -> None:
    assert_as_good_as_torch(case(dtype=dtype, mask=mask, mean=mean, tokens=64, width=96, out_width=80))


@pytest.mark.parametrize(
    ("tokens", "width", "out_width"),
    [(1, 1, 1), (3, 1, 70), (63, 64, 64), (65, 65, 65), (33, 130, 7), (600, 3, 130)],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_split_projection_of_sizes(tokens: int, width: int, out_width: int, dtype: str) -> None:
    assert_as_good_as_torch(case(tokens=tokens, width=width, out_width=out_width, batch=1, dtype=dtype))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_split_projection_reference_is_the_formula(selection: str) -> None:
    arguments = case(mask="at_threshold", selection=selection)
    out = split_projection_reference(**arguments)
    for row in range(2):
        for token in range(35):
            value = arguments["mask"][row, token]
            is_fg = value > THRESHOLD if selection == "foreground_above" else value >= THRESHOLD
            weight = arguments["w_fg"] if is_fg else arguments["w_bg"]
            torch.testing.assert_close(out[row, token], (weight * arguments["x"][row, token]).sum(1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", ["selection", "threshold", "weights", "one_weight", "one_number"])
def test_split_projection_shows_a_wrong(wrong: str, dtype: str) -> None:
    arguments = case(mask="at_threshold" if wrong == "selection" else "random", dtype=dtype)
    assert_as_good_as_torch(arguments)
    nearly = arguments["w_fg"].clone()
    nearly[3, 4] += 0.1
    told = {
        "selection": {"selection": "background_below"},
        "threshold": {"threshold": 0.06},
        "weights": {"w_fg": arguments["w_bg"], "w_bg": arguments["w_fg"]},
        "one_weight": {"w_bg": arguments["w_fg"]},
        "one_number": {"w_fg": nearly},
    }
    with pytest.raises(AssertionError):
        assert_as_good_as_torch(arguments, **told[wrong])


@pytest.mark.parametrize("region", ["w_fg", "w_bg"])
def test_split_projection_leaves_the_other_weight_unread(region: str) -> None:
    arguments = case(mask="per_row", tokens=64, dtype="fp16")
    arguments[region].fill_(float("nan"))
    out = split_projection(**arguments)
    assert out[0].isnan().all() == out[0].isnan().any() == (region == "w_bg")
    assert out[1].isnan().all() == out[1].isnan().any() == (region == "w_fg")


@pytest.mark.skipif(not INTERPRETED, reason="counts the products in Triton's interpreter: needs TRITON_INTERPRET=1")
@pytest.mark.parametrize(("mask", "products"), [("empty", 2), ("full", 2), ("per_row", 2), ("checkerboard", 4)])
def test_split_projection_does_no_work_for_a_region_that_no_token_needs(
    mask: str, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    done = []
    plain = InterpreterBuilder.create_dot
    monkeypatch.setattr(InterpreterBuilder, "create_dot", lambda *a, **kw: done.append(0) or plain(*a, **kw))
    split_projection(**case(mask=mask, tokens=64, width=64, out_width=64, dtype="fp16"))
    assert len(done) == products


@pytest.mark.parametrize(
    ("mask_value", "options"), [(1.0, {}), (-1.0, {"selection": "background_below", "threshold": 0.0})]
)
def test_split_projection_does_not_look_past_the_last_token(mask_value: float, options: dict[str, Any]) -> None:
    arguments = case(tokens=33, batch=3, **options)
    # The last batch row is there to be looked at by mistake, as is a region that only tokens past the last could be of.
    arguments["mask"].fill_(mask_value)
    arguments["mask"][2] = -mask_value
    arguments["x"][2] = float("nan")
    arguments["w_bg" if mask_value > 0 else "w_fg"].fill_(float("nan"))
    out = split_projection(**{**arguments, "x": arguments["x"][:2], "mask": arguments["mask"][:2]})
    assert not out.isnan().any()


def test_split_projection_keeps_nan() -> None:
    arguments = case()
    arguments["x"][1, 4, 5] = float("nan")
    assert split_projection(**arguments).isnan().any(2).nonzero().tolist() == [[1, 4]]


def test_split_projection_leaves_its_inputs_alone() -> None:
    arguments = case()
    copies = {name: arguments[name].clone() for name in (*TENSORS, "mask")}
    split_projection(**arguments)
    assert all(torch.equal(arguments[name], copy) for name, copy in copies.items())


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"tokens": 0}, {"out_width": 0}], ids=str)
def test_split_projection_of_nothing(sizes: dict[str, int]) -> None:
    arguments = case(**sizes)
    assert split_projection(**arguments).shape == (*arguments["mask"].shape, arguments["w_fg"].shape[0])


def test_split_projection_packs_the_queries_of_masked_split_cross_attention() -> None:
    arguments = case(out_width=32)
    k, v = (draw(2, 6, 32, seed=seed, dtype=torch.float32) for seed in (3, 4))
    options = {name: arguments[name] for name in ("mask", "selection", "threshold")}
    q_fg, q_bg = (torch.nn.functional.linear(arguments["x"], arguments[name]) for name in ("w_fg", "w_bg"))
    packed = masked_split_cross_attention(split_projection(**arguments), k, v, heads=2, **options)
    apart = masked_split_cross_attention(q_fg, k, v, heads=2, q_bg=q_bg, **options)
    torch.testing.assert_close(packed, apart, rtol=1e-5, atol=1e-5)


class Project(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    """The op between others, for the graph tracers."""

    def forward(self, x: Any, w_fg: Any, w_bg: Any, mask: Any) -> Any:
        return 2 * split_projection(x, w_fg, w_bg, mask, selection="background_below")


def graph_inputs(**sizes: int) -> tuple[Any, ...]:
    arguments = case(**sizes)
    return tuple(arguments[name] for name in (*TENSORS, "mask"))


def test_split_projection_under_compile() -> None:
    inputs = graph_inputs(tokens=5)
    compiled = torch.compile(Project(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), Project()(*inputs), rtol=0, atol=0)


def test_split_projection_under_export() -> None:
    tokens, batch = torch.export.Dim("tokens", min=2), torch.export.Dim("batch", min=2)
    shapes = ({0: batch, 1: tokens}, None, None, {0: batch, 1: tokens})
    program = torch.export.export(Project(), graph_inputs(tokens=5), dynamic_shapes=shapes)
    nodes = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.saishiki.split_projection.default in nodes
    inputs = graph_inputs(batch=3, tokens=7)
    torch.testing.assert_close(program.module()(*inputs), Project()(*inputs), rtol=0, atol=0)


def test_split_projection_passes_the_checks_of_torch() -> None:
    tensors = graph_inputs(tokens=5)
    inputs = (*tensors, "foreground_above", THRESHOLD, token_order(tensors[3]))
    torch.library.opcheck(torch.ops.saishiki.split_projection.default, inputs)


def test_split_projection_refuses_a_gradient() -> None:
    arguments = case(tokens=5)
    arguments["w_fg"].requires_grad_()
    with pytest.raises(NotImplementedError, match="saishiki::split_projection has no gradient"):
        split_projection(**arguments).sum().backward()


def bad_arguments() -> list[Any]:
    x, w, mask = torch.zeros(2, 6, 32), torch.zeros(16, 32), torch.zeros(2, 6)
    soft = "expected selection 'foreground_above' or 'background_below', got 'soft'"
    cases: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
        "a blend": ({"selection": "blend"}, ValueError, "a blend takes from both regions and needs both projections"),
        "another selection": ({"selection": "soft"}, ValueError, soft),
        "threshold nan": ({"threshold": float("nan")}, ValueError, "expected threshold to be finite, got nan"),
        "threshold inf": ({"threshold": float("inf")}, ValueError, "expected threshold to be finite, got inf"),
        "x of rank 2": ({"x": x[0]}, ValueError, "expected x (B, T, K) with K from 1, got (6, 32)"),
        "x of no width": ({"x": x[..., :0]}, ValueError, "expected x (B, T, K) with K from 1, got (2, 6, 0)"),
        "w_fg of rank 1": ({"w_fg": w[0]}, ValueError, "expected w_fg (N, 32), got (32,)"),
        "x in fp64": ({"x": x.double()}, TypeError, "expected x in torch.float16 or torch.bfloat16 or torch.float32"),
        "w_fg in fp16": ({"w_fg": w.half()}, TypeError, "expected w_fg in torch.float32, got torch.float16"),
        "w_bg in bf16": ({"w_bg": w.bfloat16()}, TypeError, "expected w_bg in torch.float32, got torch.bfloat16"),
        "mask in fp16": ({"mask": mask.half()}, TypeError, "expected mask in torch.float32, got torch.float16"),
        "w_fg of another width": ({"w_fg": w[:, :8]}, ValueError, "expected w_fg of shape (16, 32), got (16, 8)"),
        "w_bg of another height": ({"w_bg": w[:8]}, ValueError, "expected w_bg of shape (16, 32), got (8, 32)"),
        "mask of other tokens": ({"mask": mask[:, :3]}, ValueError, "expected mask of shape (2, 6), got (2, 3)"),
        "x not contiguous": ({"x": torch.zeros(2, 32, 6).transpose(1, 2)}, ValueError, "x is not contiguous"),
        "w_bg not contiguous": ({"w_bg": torch.zeros(32, 16).T}, ValueError, "w_bg is not contiguous"),
        "mask elsewhere": ({"mask": mask.to("meta")}, ValueError, "expected mask on cpu, got meta; move it"),
    }
    return [pytest.param(*case, id=name) for name, case in cases.items()]


@pytest.mark.parametrize(("wrong", "error", "message"), bad_arguments())
def test_split_projection_refuses(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {
        "x": torch.zeros(2, 6, 32),
        "w_fg": torch.zeros(16, 32),
        "w_bg": torch.zeros(16, 32),
        "mask": torch.zeros(2, 6),
        "selection": "foreground_above",
    }
    with pytest.raises(error) as caught:
        split_projection(**{**arguments, **wrong})
    assert message in str(caught.value)


def test_split_projection_refuses_tensors_off_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saishiki.kernels.checks.INTERPRETED", False)
    arguments = {name: x.cpu() if isinstance(x, torch.Tensor) else x for name, x in case().items()}
    with pytest.raises(ValueError, match="expected tensors on a CUDA device, got one on cpu"):
        split_projection(**arguments)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_variant_is_complete(variant: Any) -> None:
    assert {*variant.signature, *variant.constexprs} == set(variant.kernel.arg_names)
    assert {name for names, _ in variant.grid for name in names} <= {*variant.signature}


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "width", "out_width"),
    [(16384, 320, 320), (4096, 640, 640), (1024, 1280, 1280), (4095, 1024, 321), (1023, 333, 640)],
    ids=str,
)
def test_split_projection_on_the_gpu(tokens: int, width: int, out_width: int, dtype: str) -> None:
    assert DEVICE == "cuda"
    for mask in ("per_row", "thin_lines", "random"):
        for mean in (0.0, 4.0):
            sizes = {"tokens": tokens, "width": width, "out_width": out_width}
            assert_as_good_as_torch(case(mask=mask, dtype=dtype, mean=mean, **sizes))
