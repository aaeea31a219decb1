import copy
import json
from typing import Any

import pytest
from executor_window.decision import decide

PRECOMPILED = "residual + bias"
SUMS = "residual + bias + sums"
PROLOGUE = "norm and SiLU before, residual + bias"


def _conv(layer: str, height: int, count: int, us: float, engine: str = "cudnn best", **labels: Any) -> dict[str, Any]:
    row = {"what": "convolution", "layer": layer, "height": height, "kernel": 3, "count": count, "flops": 3e9}
    return {**row, "variant": "bias", "engine": engine, "p50_us": us, **labels}


def _parts() -> dict[str, Any]:
    """Ten steps of 3 x 100 us of convolutions, 80 us of norms and 4 gaps of 1 us."""
    rows = {
        "window_constants": [{"what": "graph gap", "us_each": 1.0}],
        "window_convs": [
            {"what": "network", "convolutions": 3, "other_launches": 4},
            {"what": "cudnn", "cudnn": "9.19.0"},
            _conv("a", 256, 2, 110.0, "cudnn first choice"),
            _conv("a", 256, 2, 100.0),
            _conv("a", 256, 2, 1.0, variant="plain"),
            _conv("a", 256, 2, 2.0, "torch"),
            _conv("b", 32, 1, 100.0, variant=PRECOMPILED),
        ],
        "window_norms": [
            {"what": "norms of the network", "bytes_by_height": {"256": 6000, "32": 2000}},
            {"what": "group_norm_silu", "height": 256, "bytes": 3000, "p50_us": 30.0},
            {"what": "group_norm_silu", "height": 32, "bytes": 1000, "p50_us": 10.0},
        ],
        "window_fused": [
            {"height": 256, "variant": PRECOMPILED, "p50_us": 100.0},
            {"height": 256, "variant": SUMS, "p50_us": 105.0},
            {"height": 256, "variant": SUMS, "p50_us": 200.0},
            {"height": 256, "variant": PROLOGUE, "p50_us": 121.0},
        ],
        "window_triton": [{"height": 256, "variant": PRECOMPILED, "p50_us": 140.0}],
        "graph": [{"what": "loop, one graph", "precision": "fp16", "p50_ms": 6.0}],
        "compiled": [{"what": "loop, compiled, one graph", "precision": "fp16", "p50_ms": 5.0}],
    }
    return {name: {"part": name, "status": "ok", "rows": each} for name, each in rows.items()}


def _verdicts(parts: dict[str, Any]) -> dict[str, Any]:
    decision = decide(parts)
    names = ("stage 2", "stage 3a", "prologue", "stage 4", "triton", "goal", "ahead")
    return {name: verdict["value"] for name, verdict in zip(names, decision["verdicts"], strict=True)}


def test_decide_adds_up_the_plan() -> None:
    decision = decide(_parts())
    assert decision["convolutions_ms"] == 3.0
    assert decision["norms_ms"] == 0.8
    assert decision["gaps_ms"] == 0.04
    assert decision["plan_ms"] == 3.84
    assert decision["best_torch_ms"] == 5.0
    assert decision["tflops_3x3_by_height"] == {"256": 30.0, "32": 30.0}


def test_decide_adds_up_the_other_convolutions() -> None:
    others = decide(_parts())["other_convolutions_ms"]
    assert others == {
        "cudnn first choice": None,  # of one layer alone
        "cudnn, plain": None,
        "torch": None,
        "torch, plain": None,
    }
    parts = _parts()
    parts["window_convs"]["rows"] += [
        _conv("b", 32, 1, 150.0, "cudnn first choice", variant=PRECOMPILED),
        _conv("b", 32, 1, 3.0, variant="plain"),
    ]
    others = decide(parts)["other_convolutions_ms"]
    assert others["cudnn first choice"] == 3.7
    assert others["cudnn, plain"] == 0.05


@pytest.mark.parametrize(("torch_ms", "value"), [(5.0, True), (4.1, True), (4.0, False), (3.0, False)])
def test_decide_stage_2_wants_five_percent(torch_ms: float, value: bool) -> None:
    parts = _parts()
    parts["compiled"]["rows"][0]["p50_ms"] = torch_ms
    assert _verdicts(parts)["stage 2"] is value


@pytest.mark.parametrize(("us", "value"), [(109.0, True), (111.0, False)])
def test_decide_stage_3a_weighs_the_third_of_the_norm_that_sums_save(us: float, value: bool) -> None:
    parts = _parts()
    parts["window_fused"]["rows"][1]["p50_us"] = us
    assert _verdicts(parts)["stage 3a"] is value


@pytest.mark.parametrize(("us", "value"), [(121.0, True), (119.0, False)])
def test_decide_prologue_is_a_trap_where_it_takes_longer_than_applying_the_norm(us: float, value: bool) -> None:
    parts = _parts()
    parts["window_fused"]["rows"][3]["p50_us"] = us
    assert _verdicts(parts)["prologue"] is value


@pytest.mark.parametrize(("us", "value"), [(100.0, True), (11.0, False)])
def test_decide_stage_4_starts_where_cudnn_is_slow(us: float, value: bool) -> None:
    parts = _parts()
    parts["window_convs"]["rows"][3]["p50_us"] = us
    assert _verdicts(parts)["stage 4"] is value


@pytest.mark.parametrize(("us", "value"), [(142.0, True), (144.0, False)])
def test_decide_triton_suffices_at_seventy_percent(us: float, value: bool) -> None:
    parts = _parts()
    parts["window_triton"]["rows"][0]["p50_us"] = us
    assert _verdicts(parts)["triton"] is value


def test_decide_without_any_number_decides_nothing() -> None:
    decision = decide({})
    terms = ("convolutions_ms", "norms_ms", "gaps_ms", "plan_ms", "best_torch_ms")
    assert {decision[name] for name in terms} == {None}
    assert set(decision["other_convolutions_ms"].values()) == {None}
    assert decision["tflops_3x3_by_height"] == {}
    assert set(_verdicts({}).values()) == {None}
    assert "plan not measured, best torch not measured" in decision["verdicts"][0]["why"]


MISSING = {
    "constants": ("window_constants", 0),
    "network": ("window_convs", 0),
    "a layer": ("window_convs", 6),
    "norms": ("window_norms", 0),
    "a level's norm": ("window_norms", 2),
    "torch.compile": ("compiled", 0),
}


@pytest.mark.parametrize(("part", "row"), MISSING.values(), ids=list(MISSING))
def test_decide_stage_2_needs_every_number(part: str, row: int) -> None:
    parts = _parts()
    del parts[part]["rows"][row]
    assert _verdicts(parts)["stage 2"] is None


def test_decide_counts_no_red_row_and_no_torch_convolution() -> None:
    parts = _parts()
    for row in parts["window_convs"]["rows"]:
        if row.get("layer") == "b":
            del row["p50_us"]
            row["red"] = True
    decision = decide(parts)
    assert decision["convolutions_ms"] is None
    assert decision["plan_ms"] is None


def test_decide_says_the_same_of_results_that_were_saved() -> None:
    parts = _parts()
    parts["window_norms"]["rows"][0]["bytes_by_height"] = {256: 6000, 32: 2000}
    assert decide(json.loads(json.dumps(parts))) == decide(copy.deepcopy(parts))


def test_decide_of_our_engine_by_its_better_backend() -> None:
    def image(backend: str, ms: float) -> dict[str, Any]:
        return {"rows": [{"what": "image, whole loop", "backend": backend, "p50_ms": ms}]}

    def beside(backend: str, ratio: float) -> dict[str, Any]:
        return {"what": "loop, our engine", "backend": backend, "compiled_over_ours": ratio}

    parts = {"plan_cudnn": image("cuda-cudnn", 9.5), "plan_triton": image("cuda-triton", 16.0)}
    parts["compiled"] = {"rows": [beside("cuda-cudnn", 1.2), beside("cuda-triton", 0.7)]}
    decision = decide(parts)
    assert decision["engine_ms"] == {"cuda-cudnn": 9.5, "cuda-triton": 16.0}
    assert decision["compiled_over_engine"] == {"cuda-cudnn": 1.2, "cuda-triton": 0.7}
    assert [verdict["value"] for verdict in decision["verdicts"][-2:]] == [True, True]
    assert "cuda-triton 16.0 ms" in decision["verdicts"][-2]["why"]
    slow = {**parts, "plan_cudnn": image("cuda-cudnn", 15.1), "compiled": {"rows": [beside("cuda-cudnn", 0.99)]}}
    assert [verdict["value"] for verdict in decide(slow)["verdicts"][-2:]] == [False, False]
