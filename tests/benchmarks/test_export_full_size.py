import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import export_full_size
import pytest
from export_full_size import main, memory_bound_bytes
from random_weights.colorizediffusion import tiny_config

from saishiki.models import read_checkpoint
from saishiki.models.colorizediffusion.loading import config_from_checkpoint
from saishiki.models.family import LoadOptions

EXPORT = {"seconds": 9.0, "peak_rss_gb": 1.0, "verdict": "passed", "errors": {}, "engine_mb": {}}


@pytest.mark.parametrize(("generation", "bound_gb"), [("v1", 4.27), ("v2", 4.88)])
def test_memory_bound_is_of_the_u_net(generation: str, bound_gb: float) -> None:
    # 1.6 times the fp16 weights of 865.9 M and 1056.9 M parameters, and 1.5 GB.
    assert memory_bound_bytes(generation) / 1e9 == pytest.approx(bound_gb, abs=0.005)


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
    assert result["peak_rss_bound_gb"] == pytest.approx(1.5, abs=0.3)
    options = ("--size", "512", "--size", "768", "--precision", "fp16", "--targets", "onnx")
    caches = {cache for _, cache, _ in asked}
    assert [(bundle.name, given) for bundle, _, given in asked] == [
        ("full.saishiki", options),
        ("again.saishiki", options),
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
