import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import export_full_size
import pytest
from export_full_size import PeakRss, main, memory_bound_bytes
from random_weights.colorizediffusion import tiny_config

from saishiki.models import read_checkpoint
from saishiki.models.colorizediffusion.loading import config_from_checkpoint
from saishiki.models.family import LoadOptions

EXPORT = {"seconds": 9.0, "peak_rss_gb": 1.0, "verdict": "passed", "errors": {}, "engine_mb": {}}


def test_memory_bound_is_of_the_largest_fp16_graph() -> None:
    def module(**bytes_of: int | None) -> dict[str, Any]:
        graphs = {p: {"weights": None if size is None else {"bytes": size}} for p, size in bytes_of.items()}
        return {"graphs": graphs}

    modules = {"denoiser": module(fp16=10**9), "decoder": module(fp16=5, fp32=4 * 10**9), "inline": module(fp16=None)}
    assert memory_bound_bytes({"modules": modules}) == 1.6e9 + 1.5e9


def test_peak_rss_is_of_a_process_and_of_its_children() -> None:
    script = "import subprocess, sys; a = bytearray(50 << 20); subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
    child = "import time; a = bytearray(150 << 20); time.sleep(1)"
    peak = PeakRss()
    peak.watch(subprocess.Popen([sys.executable, "-c", script, child, "saishiki.export.engines.worker"]))
    own, child_rss = peak.each["of the command itself"], peak.each["of the builder"]
    assert 50 << 20 < own < 150 << 20 < child_rss < 250 << 20
    assert child_rss < peak.together <= own + child_rss


def test_main_exports_all_modules_of_colorizediffusion_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, Path, Sequence[str]]] = []

    def exported(checkpoint: Path, bundle: Path, cache: Path, *, options: Sequence[str]) -> dict[str, Any]:
        asked.append((bundle, cache, options))
        found = config_from_checkpoint(read_checkpoint(checkpoint), LoadOptions())
        assert found == tiny_config("v2")
        return EXPORT | {"seconds": 9.0 - 8.0 * (len(asked) - 1)}

    monkeypatch.setattr(export_full_size, "CONFIGS", {"v2": tiny_config("v2")})
    monkeypatch.setattr(export_full_size, "measure_export", exported)
    output = tmp_path / "out.json"
    main(["--family", "colorizediffusion-v2", "--folder", str(tmp_path), "--targets", "onnx", "--output", str(output)])
    result = json.loads(output.read_text())
    assert result["family"] == "colorizediffusion-v2"
    assert result["export"] == EXPORT
    assert result["rerun"] == {"seconds": 1.0, "peak_rss_gb": 1.0}
    options = ("--size", "512", "--precision", "fp16", "--targets", "onnx")
    caches = {cache for _, cache, _ in asked}
    assert [(bundle.name, given) for bundle, _, given in asked] == [
        ("full.saishiki", options),
        ("full.saishiki", (*options, "--overwrite")),
    ]
    assert len(caches) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--family", "v2"], "invalid choice: 'v2'"), (["--folder", "/nowhere/f"], "no folder /nowhere/f")],
)
def test_main_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
