import json
from pathlib import Path

import optimizer_times
import pytest


def measured(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr("sys.argv", ["optimizer_times.py", *map(str, arguments)])
    optimizer_times.main()


def test_both_ways_are_timed(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "times.json"
    measured(monkeypatch, tiny_checkpoint, "--modules", "time_projection", "--output", output)
    result = json.loads(output.read_text())
    assert result["family"] == "animediffusion"
    assert result["modules"]["time_projection"]["nodes"] > 10
    assert min(result["modules"]["time_projection"].values()) > 0


def test_graphs_that_differ_are_no_result(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> None:
    graphs = {"all_rewrites_s": ["Split"], "as_exported_s": ["Slice", "Slice"]}
    monkeypatch.setattr(optimizer_times, "_optimize_copy", lambda _, way: (1.0, graphs[way]))
    with pytest.raises(RuntimeError, match=r"time_projection: .* changes the graph: 1 nodes and 2 nodes"):
        measured(monkeypatch, tiny_checkpoint, "--modules", "time_projection")


def test_unknown_module(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        measured(monkeypatch, tiny_checkpoint, "--modules", "unet")
    assert f"unet: not a module of {tiny_checkpoint}; it has time_projection, denoiser" in capsys.readouterr().err
