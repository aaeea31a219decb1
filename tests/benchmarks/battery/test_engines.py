import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from battery import engines as module
from battery.engines import engines, probe, rtx_probe
from battery.part import Options, SkippedError

DRY_RUN = Options(dry_run=True)


def test_engines_says_why_a_backend_is_not_there(tiny_bundle: Path) -> None:
    rows = list(engines(replace(DRY_RUN, bundle=tiny_bundle)))
    found = {(row["backend"], row["precision"]): row for row in rows}
    exact = found["onnxruntime cpu", "fp32"]
    assert (exact["error"], exact.get("unavailable")) == (0.0, None)
    assert "not installed" in found["tensorrt", "fp16"]["unavailable"]
    assert found["tensorrt-rtx", "fp16"]["unavailable"]
    assert not any("p50_ms" in row for row in rows)


def test_engines_of_a_wrong_backend_are_red(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.BUDGETS, "fp32", -1.0)
    row = next(engines(replace(DRY_RUN, bundle=tiny_bundle)))
    assert row["red"]
    assert "p50_ms" not in row


def test_engines_and_rtx_probe_without_a_bundle_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SkippedError, match="needs --bundle DIR"):
        next(engines(DRY_RUN))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(SkippedError, match="needs --bundle DIR"):
        next(rtx_probe(DRY_RUN))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SkippedError, match="needs tensorrt_rtx"):
        next(rtx_probe(DRY_RUN))


class Rtx:
    """tensorrt_rtx, which finds a wrong compute capability in every engine."""

    class Logger:
        INFO = 0

        def __init__(self, level: int) -> None: ...

    class Runtime:
        def __init__(self, logger: object) -> None: ...

        def get_engine_validity(self, blob: bytes) -> tuple[str, int]:
            return "INVALID", 2

        def deserialize_cuda_engine(self, blob: bytes) -> object:
            return None

    EngineInvalidityDiagnostics: Any = types.SimpleNamespace(
        __members__={"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "OLD_DRIVER": 4}
    )


def test_probe_tells_the_verdict_on_each_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = types.SimpleNamespace(backend="tensorrt-rtx", target="sm89", file="e")
    other = types.SimpleNamespace(backend="tensorrt", target="sm89", file="e")
    (tmp_path / "e").write_bytes(b"engine")
    bundle = types.SimpleNamespace(
        manifest=types.SimpleNamespace(modules={"denoiser": types.SimpleNamespace(engines=[engine, other])}),
        file=lambda name: tmp_path / name,
    )
    monkeypatch.setattr(module.Bundle, "open", lambda path, allow_failed: bundle)
    verdict, deserialized = probe(Rtx, tmp_path, "sm90")
    labels = {"module": "denoiser", "target": "sm89", "gpu": "sm90"}
    assert verdict == {**labels, "verdict": "INVALID", "diagnostics": ["UNSUPPORTED_CC"]}
    assert deserialized == {**labels, "deserialized": False}
