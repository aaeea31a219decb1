from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from battery import layers as module
from battery.layers import gpu_of, layers, rows_of
from battery.part import Options, SkippedError
from graph_roofline.layers import Layer
from graph_roofline.onnxruntime_times import CUDA, WAIT, LayerTimes
from graph_roofline.report import counted, profiled
from roofline import GPUS, Work

from saishiki.runtime.bundle import Bundle

DRY_RUN = Options(dry_run=True)
SIZES = {"batch": 1, "height": 32, "width": 32}


@pytest.fixture(autouse=True)
def _not_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WAIT, "0")


def test_a_dry_run_profiles_every_layer_and_times_none(tiny_bundle: Path) -> None:
    first, *rest = list(layers(replace(DRY_RUN, bundle=tiny_bundle)))
    assert first["layers"] == len(rest) == len({row["layer"] for row in rest})
    assert {"Conv", "GroupNormalization"} <= {row["op"] for row in rest}
    assert not {"us", "floor_percent", "profiled_run_ms"} & {name for row in (first, *rest) for name in row}


def layer(name: str, gflop: float) -> Layer:
    return Layer(name, "Conv", (1,), (3, 3), ("Conv",), frozenset(), Work(int(gflop * 1e9), 0, 0, 1))


def test_rows_come_the_farthest_first() -> None:
    found = (layer("near", 165.2), layer("far", 165.2))
    times = LayerTimes({"near": 2000.0, "far": 4000.0}, (7000.0, 6000.0, 6500.0))
    first, *rest = rows_of(found, times, GPUS[0], {"matrix_gflop": 1.0}, Options(dry_run=False))
    assert (first["profiled_run_ms"], first["kernels_ms"], first["below_floor"]) == (6.5, 6.0, [])
    assert [(row["layer"], row["us"], row["floor_us"], row["floor_percent"]) for row in rest] == [
        ("far", 4000.0, 1000.0, 25.0),
        ("near", 2000.0, 1000.0, 50.0),
    ]


def test_a_gpu_whose_peaks_are_unknown_has_no_floors() -> None:
    times = LayerTimes({"a": 2.0}, (3.0,))
    first, row = rows_of((layer("a", 1.0),), times, gpu_of("Tesla T4"), {}, Options(dry_run=False))
    assert (first["peaks"], row["bound"], row["floor_us"], row["us"]) == ("none known", "unknown", 0.0, 2.0)


@pytest.mark.parametrize(
    ("name", "gpu"), [("NVIDIA H200", "H200"), ("NVIDIA GeForce RTX 4090", "RTX 4090"), ("Tesla T4", None), ("", None)]
)
def test_gpu_of(name: str, gpu: str | None) -> None:
    found = gpu_of(name)
    assert (found and found.name) == gpu


def test_launches_must_be_waited_for(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(tiny_bundle)
    what = counted(bundle, "denoiser", "fp16", SIZES)
    with pytest.raises(ValueError, match="only under CUDA_LAUNCH_BLOCKING=1, set before"):
        profiled(bundle, "denoiser", "fp16", what, runs=1, provider=CUDA)


def test_a_session_that_goes_on_without_cuda_is_an_error(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    plain = onnxruntime.InferenceSession
    monkeypatch.setenv(WAIT, "1")
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *given, providers: plain(*given, providers=["CPUExecutionProvider"])
    )
    bundle = Bundle.open(tiny_bundle)
    what = counted(bundle, "denoiser", "fp32", SIZES)
    with pytest.raises(RuntimeError, match="runs on CPUExecutionProvider, not on CUDAExecutionProvider"):
        profiled(bundle, "denoiser", "fp32", what, runs=1, provider=CUDA)


def test_on_a_gpu_the_fp16_graph_is_profiled_there_under_waiting(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def profile(bundle: Bundle, name: str, precision: str, what: Any, *, runs: int, provider: str) -> LayerTimes:
        asked.append((name, precision, runs, provider, module.os.environ[WAIT]))
        return LayerTimes({layer.name: 5.0 for layer in what.layers}, (100.0,) * runs)

    monkeypatch.setattr(module, "why_unavailable", lambda *, cuda: None)
    monkeypatch.setattr(module, "profiled", profile)
    monkeypatch.setattr(module, "asked", lambda query: "NVIDIA H200")
    first, *rest = list(layers(Options(dry_run=False, bundle=tiny_bundle)))
    assert asked == [("denoiser", "fp16", module.RUNS, CUDA, "1")]
    assert first["peaks"] == GPUS[1].source
    assert {row["us"] for row in rest} == {5.0}


def test_it_is_skipped_without_a_bundle_or_the_provider(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SkippedError, match="needs --bundle DIR"):
        next(layers(DRY_RUN))
    monkeypatch.setattr(module, "why_unavailable", lambda *, cuda: "no CUDA provider")
    with pytest.raises(SkippedError, match="no CUDA provider"):
        next(layers(Options(dry_run=False, bundle=tiny_bundle)))
