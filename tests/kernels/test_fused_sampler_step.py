"""The fused sampler step against its reference in fp64, on the GPU or under Triton's interpreter."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

import numpy as np  # noqa: E402

from saishiki.kernels.fused_sampler_step import (  # noqa: E402
    VARIANTS,
    fused_sampler_step,
    fused_sampler_step_reference,
)
from saishiki.runtime.samplers import COLUMNS  # noqa: E402

Step = Callable[..., None]
Tensors = dict[str, Any]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOOR = 1e-6
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NAN = float("nan")


def draw(shape: tuple[int, ...], *, scale: float = 1.0, mean: float = 0.0, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale + mean).to(DEVICE)


def rows(steps: int = 5) -> Any:
    """A table in which every term counts."""
    table = draw((steps, len(COLUMNS)), seed=8).abs() * 0.5 + 0.3
    table[:, 4], table[:, 5] = -0.6, 0.75
    return table


def arguments(
    shape: tuple[int, ...] = (2, 3, 4, 5),
    *,
    slots: int = 2,
    kept: int = 2,
    prediction: str = "fp32",
    model_input: str = "fp32",
    scale: float = 1.0,
    mean: float = 0.0,
) -> Tensors:
    """All that a step takes; what it only writes holds NaN."""
    batch, *image = shape
    wide = (slots * batch, *image)
    return {
        "x": draw(shape, scale=scale, mean=mean, seed=1),
        "prediction": draw(wide, scale=scale, mean=mean, seed=2).to(DTYPES[prediction]),
        "table": rows(),
        "noise": draw(shape, seed=3),
        "history": draw((kept, *shape), scale=scale, mean=mean, seed=4) if kept else None,
        "model_input": torch.full(wide, NAN, dtype=DTYPES[model_input], device=DEVICE),
    }


def run(step: Step, given: Tensors, k: int, *, dtype: Any = None) -> Tensors:
    """What a step makes of copies of its arguments, all of them in a dtype if one is named."""
    copies = {
        name: None if tensor is None else tensor.to(dtype or tensor.dtype, copy=True) for name, tensor in given.items()
    }
    x, prediction, table = (copies.pop(name) for name in ("x", "prediction", "table"))
    step(x, prediction, table, k, **copies)
    return {"x": x, "history": copies["history"], "model_input": copies["model_input"]}


def assert_within_budget(got: Tensors, plain: Tensors, truth: Tensors) -> None:
    """The error against fp64 is at most twice torch's own, plus a floor for numbers near 0."""
    for name, exact in truth.items():
        if exact is not None:
            assert not got[name].isnan().any(), name
            budget = 2 * (plain[name] - exact).abs().max() + FLOOR * max(1.0, exact.abs().max())
            assert (got[name] - exact).abs().max() <= budget, name


def assert_as_good_as_torch(given: Tensors, k: int = 1) -> None:
    got = run(fused_sampler_step, given, k)
    plain = run(fused_sampler_step_reference, given, k)
    assert {name: tensor.dtype for name, tensor in got.items() if tensor is not None} == {
        name: given[name].dtype for name, tensor in got.items() if tensor is not None
    }
    assert_within_budget(got, plain, run(fused_sampler_step_reference, given, k, dtype=torch.float64))


@pytest.mark.parametrize("kept", [0, 1, 2], ids="history {}".format)
@pytest.mark.parametrize("slots", [1, 2, 3], ids="{} slots".format)
@pytest.mark.parametrize("dtype", DTYPES)
def test_step_is_as_good_as_torch(dtype: str, slots: int, kept: int) -> None:
    given = arguments(slots=slots, kept=kept, prediction=dtype, model_input=dtype)
    # What the history does not hold, the table does not ask for.
    given["table"][:, 9 + kept : 11] = 0
    assert_as_good_as_torch(given)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 17, 5), (1, 3, 33, 41), (1, 4, 16, 8), (3, 5, 7, 11)], ids=str)
def test_step_of_any_size(shape: tuple[int, ...]) -> None:
    assert_as_good_as_torch(arguments(shape, slots=3, prediction="fp16", model_input="fp16"))


@pytest.mark.parametrize(("prediction", "model_input"), list(product(DTYPES, DTYPES)))
def test_step_mixes_dtypes(prediction: str, model_input: str) -> None:
    assert_as_good_as_torch(arguments(prediction=prediction, model_input=model_input))


@pytest.mark.parametrize("k", range(5))
def test_step_reads_its_row(k: int) -> None:
    assert_as_good_as_torch(arguments(), k)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 1e2], ids=["small", "large"])
def test_step_of_a_large_mean(scale: float, dtype: str) -> None:
    given = arguments(slots=3, prediction=dtype, model_input=dtype, scale=scale, mean=1e3)
    given["table"][:, 4], given["table"][:, 5] = -np.inf, np.inf
    assert_as_good_as_torch(given)


@pytest.mark.parametrize("column", COLUMNS)
def test_step_shows_a_wrong_coefficient(column: str) -> None:
    given = arguments(slots=3)
    right = run(fused_sampler_step, given, 2)
    given["table"][2, COLUMNS.index(column)] *= 1.001
    wrong = run(fused_sampler_step, given, 2)
    assert max((wrong[name] - right[name]).abs().max() for name in right) > 10 * FLOOR


@pytest.mark.parametrize("name", ["x", "prediction", "noise", "history"])
def test_step_shows_a_wrong_operand(name: str) -> None:
    given = arguments(slots=3)
    right = run(fused_sampler_step, given, 2)
    given[name][..., -1, -1] += 0.01
    assert (run(fused_sampler_step, given, 2)["x"] - right["x"]).abs().max() > 10 * FLOOR


def test_step_writes_every_slot_alike() -> None:
    out = run(fused_sampler_step, arguments(slots=3, model_input="fp16"), 1)
    first, *others = out["model_input"].chunk(3)
    assert all(torch.equal(first, other) for other in others)
    np.testing.assert_allclose(first.float().cpu(), (rows()[1, 12] * out["x"]).half().float().cpu(), rtol=1e-3)


@pytest.mark.parametrize("kept", [1, 2], ids="history {}".format)
def test_history_rotates(kept: int) -> None:
    """Slot k mod R gets step k's x0; the other one stays. A history of NaN is not read by the first steps."""
    given = arguments(slots=1, kept=kept)
    table, x, history = given["table"], given["x"], torch.full_like(given["history"], NAN)
    table[0, 9:11] = table[1, 10] = 0
    if kept == 1:
        table[:, 10] = 0
    seen: list[Any] = []
    for k in range(4):
        prediction, before = draw(x.shape, seed=20 + k), x.clone()
        fused_sampler_step(x, prediction, table, k, noise=given["noise"], history=history)
        row = table[k].tolist()
        seen.append((row[2] * before + row[3] * prediction).clamp(row[4], row[5]))
        expected = row[6] * before + row[7] * seen[k] + row[8] * prediction + row[11] * given["noise"]
        for back in range(1, kept + 1):
            expected = expected + (row[8 + back] * seen[k - back] if k >= back else 0)
        torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)
        for slot in range(min(kept, k + 1)):
            torch.testing.assert_close(history[(k - slot) % kept], seen[k - slot], rtol=1e-5, atol=1e-5)
        assert kept == 1 or k > 0 or history[1].isnan().all()


@pytest.mark.parametrize(
    ("column", "left_out"),
    [("noise", "noise"), ("x0_1", "history"), ("x0_2", "history")],
    ids=["noise", "x0_1", "x0_2"],
)
@pytest.mark.parametrize("step", [fused_sampler_step, fused_sampler_step_reference], ids=["kernel", "reference"])
def test_what_is_asked_for_and_missing_is_nan(step: Step, column: str, left_out: str) -> None:
    given = arguments() | {left_out: None}
    assert run(step, given, 1)["x"].isnan().all()
    given["table"][:, [COLUMNS.index(name) for name in ("noise", "x0_1", "x0_2")]] = 0
    assert not run(step, given, 1)["x"].isnan().any()
    given["table"][:, COLUMNS.index(column)] = 1
    assert run(step, given, 1)["x"].isnan().all()


def test_an_older_x0_in_a_short_history_is_nan() -> None:
    assert run(fused_sampler_step, arguments(kept=1), 1)["x"].isnan().all()


@pytest.mark.parametrize("where", ["x", "prediction"])
def test_step_keeps_nan(where: str) -> None:
    given = arguments((1, 3, 4, 4), slots=1)
    given[where][0, 1, 2, 3] = NAN
    out = run(fused_sampler_step, given, 2)
    for name in ("x", "model_input"):
        assert out[name].isnan().nonzero().tolist() == [[0, 1, 2, 3]]


def test_step_keeps_nan_where_x0_alone_counts() -> None:
    given = arguments((1, 3, 4, 4), slots=1)
    given["table"][:, 6:12] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    given["prediction"][0, 1, 2, 3] = NAN
    assert run(fused_sampler_step, given, 2)["x"].isnan().nonzero().tolist() == [[0, 1, 2, 3]]


@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply:RuntimeWarning")  # the interpreter's inf * 0
def test_step_clips_infinity_and_leaves_out_what_does_not_count() -> None:
    """Only x0 counts, so infinity elsewhere does not reach the result."""
    given = arguments((1, 3, 4, 4), slots=1)
    given["table"][:, 6:12] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    given["x"][0, 0, 0, 0] = float("inf")
    given["noise"][...], given["history"][...] = NAN, NAN
    out = run(fused_sampler_step, given, 2)["x"]
    assert out.isfinite().all()
    assert out[0, 0, 0, 0] == 0.75


def test_step_leaves_its_inputs_alone() -> None:
    given = arguments(slots=3)
    copies = {name: tensor.clone() for name, tensor in given.items()}
    run_in_place = {name: given[name] for name in ("noise", "history", "model_input")}
    fused_sampler_step(given["x"], given["prediction"], given["table"], 1, **run_in_place)
    assert all(torch.equal(given[name], copies[name]) for name in ("prediction", "table", "noise"))
    assert all(not torch.equal(given[name], copies[name]) for name in ("x", "history", "model_input"))
    assert torch.equal(given["history"][0], copies["history"][0])


def test_step_of_nothing() -> None:
    given = arguments((0, 3, 4, 4))
    assert run(fused_sampler_step, given, 0)["x"].shape == (0, 3, 4, 4)
    assert run(fused_sampler_step_reference, given, 0)["x"].shape == (0, 3, 4, 4)


def step_and_read(x: Any, prediction: Any, table: Any, noise: Any, history: Any, model_input: Any) -> Any:
    fused_sampler_step(x, prediction, table, 1, noise=noise, history=history, model_input=model_input)
    return model_input * 2


def fresh(slots: int = 2) -> list[Any]:
    given = arguments(slots=slots, prediction="fp16", model_input="fp16")
    return [given[name] for name in ("x", "prediction", "table", "noise", "history", "model_input")]


def assert_same_step(compiled: Callable[..., Any]) -> None:
    ours, theirs = fresh(), fresh()
    torch.testing.assert_close(compiled(*theirs), step_and_read(*ours), rtol=0, atol=0)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(other, mine, rtol=0, atol=0)
    assert not torch.equal(ours[0], fresh()[0])


def test_step_compiles() -> None:
    assert_same_step(torch.compile(step_and_read, backend="aot_eager", fullgraph=True))


def test_compiled_step_takes_any_k() -> None:
    compiled = torch.compile(fused_sampler_step, backend="aot_eager", fullgraph=True)
    for k in range(4):
        given = arguments((1, 3, 4, 4))
        got, expected = run(compiled, given, k), run(fused_sampler_step, given, k)
        assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


class Stepper(torch.nn.Module):
    def forward(self, x: Any, prediction: Any, table: Any, noise: Any, history: Any, model_input: Any) -> Any:
        return step_and_read(x, prediction, table, noise, history, model_input)


def test_step_exports() -> None:
    program = torch.export.export(Stepper(), tuple(fresh()))
    names = [str(node.target) for node in program.graph.nodes]
    assert names.count("saishiki.fused_sampler_step.default") == 1
    assert_same_step(program.module())


@pytest.mark.parametrize("left_out", [(), (4, 5, 6)], ids=["all", "least"])
def test_step_is_a_sound_operator(left_out: tuple[int, ...]) -> None:
    x, prediction, table, noise, history, model_input = fresh()
    model_input.zero_()  # NaN is never equal to itself
    given = [x, prediction, table, 1, noise, history, model_input]
    given = [None if place in left_out else argument for place, argument in enumerate(given)]
    if left_out:
        table[:, 9:12] = 0
    torch.library.opcheck(torch.ops.saishiki.fused_sampler_step.default, tuple(given))


def bad_arguments() -> list[Any]:
    given = arguments((1, 3, 4, 4))
    x, wide, table = given["x"], given["prediction"], given["table"]
    turned = x.transpose(2, 3)
    cases: dict[str, tuple[Tensors, type[Exception], str]] = {
        "x in fp16": ({"x": x.half()}, TypeError, "expected x in torch.float32, got torch.float16"),
        "prediction in fp64": ({"prediction": wide.double()}, TypeError, "expected prediction in torch.float16 or"),
        "table in fp64": ({"table": table.double()}, TypeError, "expected table in torch.float32, got torch.float64"),
        "noise in fp16": ({"noise": x.half()}, TypeError, "expected noise in torch.float32"),
        "history in fp16": ({"history": given["history"].half()}, TypeError, "expected history in torch.float32"),
        "model input in fp64": ({"model_input": wide.double()}, TypeError, "expected model_input in torch.float16 or"),
        "x of three dims": ({"x": x[0]}, ValueError, "expected x (B, C, H, W), got (3, 4, 4)"),
        "four slots": (
            {"prediction": x.repeat(4, 1, 1, 1)},
            ValueError,
            "expected a prediction of 1 to 3 times (1, 3, 4, 4) along the batch, got (4, 3, 4, 4)",
        ),
        "prediction of another shape": (
            {"prediction": wide[:, :2]},
            ValueError,
            "expected a prediction of 1 to 3 times",
        ),
        "prediction of nothing": ({"prediction": wide[:0]}, ValueError, "expected a prediction of 1 to 3 times"),
        "prediction of three dims": ({"prediction": x[0]}, ValueError, "expected a prediction of 1 to 3 times"),
        "half a slot": (
            {"x": x.repeat(2, 1, 1, 1), "prediction": x.repeat(3, 1, 1, 1)},
            ValueError,
            "1 to 3 times (2, 3, 4, 4) along the batch, got (3, 3, 4, 4)",
        ),
        "noise of another shape": ({"noise": x[..., :2]}, ValueError, "expected noise of shape (1, 3, 4, 4)"),
        "history of three": ({"history": x.repeat(3, 1, 1, 1, 1)}, ValueError, "expected a history of 1 to 2 slots"),
        "history of none": ({"history": x[None][:0]}, ValueError, "expected a history of 1 to 2 slots, got (0, 1, 3"),
        "history without dims": (
            {"history": torch.tensor(0.0)},
            ValueError,
            "expected a history of 1 to 2 slots, got ()",
        ),
        "history of another shape": ({"history": x}, ValueError, "expected history of shape (1, 1, 3, 4, 4)"),
        "model input of one slot": ({"model_input": x}, ValueError, "expected model_input of shape (2, 3, 4, 4)"),
        "twelve columns": ({"table": table[:, :12]}, ValueError, "expected a table (S, 13), got (5, 12)"),
        "a row for a table": ({"table": table[0]}, ValueError, "expected a table (S, 13), got (13,)"),
        "step too large": ({"k": 5}, ValueError, "expected a step k from 0 to 4, got 5"),
        "step below 0": ({"k": -1}, ValueError, "expected a step k from 0 to 4, got -1"),
        "x not contiguous": ({"x": turned}, ValueError, "x is not contiguous"),
        "prediction not contiguous": ({"prediction": wide.transpose(2, 3)}, ValueError, "prediction is not contiguous"),
        "noise not contiguous": ({"noise": turned}, ValueError, "noise is not contiguous"),
        "table not contiguous": ({"table": table.T.contiguous().T}, ValueError, "table is not contiguous"),
        "model input not contiguous": (
            {"model_input": wide.transpose(2, 3)},
            ValueError,
            "model_input is not contiguous",
        ),
        "table elsewhere": ({"table": table.to("meta")}, ValueError, f"expected table on {x.device}, got meta"),
        "prediction elsewhere": (
            {"prediction": wide.to("meta")},
            ValueError,
            f"expected prediction on {x.device}, got meta",
        ),
        "gradient": ({"prediction": wide.clone().requires_grad_()}, NotImplementedError, "has no gradient"),
    }
    return [pytest.param({"k": 0, **given, **change}, *case, id=name) for name, (change, *case) in cases.items()]


@pytest.mark.parametrize(("given", "error", "message"), bad_arguments())
def test_step_refuses(given: Tensors, error: type[Exception], message: str) -> None:
    x = given["x"].clone()
    with pytest.raises(error) as caught:
        fused_sampler_step(**given)
    assert message in str(caught.value)
    assert torch.equal(given["x"], x)


def test_step_refuses_a_cpu_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saishiki.kernels.checks.INTERPRETED", False)
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="fused_sampler_step: expected tensors on a CUDA device, got one on cpu"):
        fused_sampler_step(x, x, rows().cpu(), 0)


def test_step_runs_under_no_grad() -> None:
    given = arguments()
    given["prediction"].requires_grad_()
    with torch.no_grad():
        assert not run(fused_sampler_step, given, 0)["x"].isnan().any()


def test_variants_name_their_constants() -> None:
    assert [variant.name for variant in VARIANTS] == [
        f"fused_sampler_step_g{slots}_{dtype}" for slots in (1, 2, 3) for dtype in DTYPES
    ]
    for variant in VARIANTS:
        assert {*variant.signature, *variant.constexprs} == set(variant.kernel.arg_names)
        assert all(name in variant.signature for names, _ in variant.grid for name in names)


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
@pytest.mark.parametrize("slots", [1, 2, 3], ids="{} slots".format)
@pytest.mark.parametrize("dtype", DTYPES)
def test_step_on_the_gpu(dtype: str, slots: int) -> None:
    assert DEVICE == "cuda"
    for shape in ((4, 4, 128, 128), (2, 3, 512, 509)):
        assert_as_good_as_torch(arguments(shape, slots=slots, prediction=dtype, model_input=dtype))


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
def test_steps_in_a_cuda_graph() -> None:
    assert DEVICE == "cuda"
    given = arguments((2, 4, 64, 64), prediction="fp16", model_input="fp16")

    def steps(tensors: Tensors) -> None:
        others = {name: tensors[name] for name in ("noise", "history", "model_input")}
        for k in range(5):
            fused_sampler_step(tensors["x"], tensors["prediction"], tensors["table"], k, **others)

    expected, replayed = ({name: tensor.clone() for name, tensor in given.items()} for _ in range(2))
    steps(expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        steps(replayed)
    for name, tensor in given.items():
        replayed[name].copy_(tensor)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(replayed[name], expected[name]) for name in ("x", "history", "model_input"))
