"""The demo checkpoint on characters it never saw: right colours, and fp16 no worse than fp32."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "faces_quality.py"


def measured(folder: Path, *options: str) -> dict[str, dict[str, float]]:
    output = folder / "quality.json"
    subprocess.run([sys.executable, SCRIPT, "--output", output, *options], check=True, stdout=subprocess.DEVNULL)
    return json.loads(output.read_text())["systems"]


@pytest.fixture(scope="module")
def systems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    return measured(tmp_path_factory.mktemp("faces"))


@pytest.mark.parametrize("name", ["torch fp32", "onnxruntime fp32", "onnxruntime fp16"])
def test_colours_are_right(systems: dict[str, dict[str, float]], name: str) -> None:
    assert systems[name]["psnr_db"] >= 23.0
    assert systems[name]["ms_ssim"] >= 0.9


def assert_as_good_as_fp32(system: dict[str, float]) -> None:
    assert system["psnr_to_torch_fp32_db"] >= 45.0
    assert system["worst_psnr_to_torch_fp32_db"] >= 40.0


def test_fp16_is_as_good_as_fp32(systems: dict[str, dict[str, float]]) -> None:
    assert_as_good_as_fp32(systems["onnxruntime fp16"])


@pytest.mark.exhaustive
def test_plans_are_as_good_as_fp32(tmp_path: Path) -> None:
    system = measured(tmp_path, "--plans")["cuda-reference fp16"]
    assert_as_good_as_fp32(system)
    assert system["ms_ssim"] >= 0.9


def test_fp32_graph_gives_the_same_pictures(systems: dict[str, dict[str, float]]) -> None:
    assert systems["onnxruntime fp32"]["worst_psnr_to_torch_fp32_db"] >= 80.0
    assert systems["onnxruntime fp32"]["largest_difference_levels"] <= 1
