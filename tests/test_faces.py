"""The demo checkpoint on characters it never saw: right colours, and fp16 no worse than fp32."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "faces_quality.py"


@pytest.fixture(scope="module")
def systems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    output = tmp_path_factory.mktemp("faces") / "quality.json"
    subprocess.run([sys.executable, SCRIPT, "--output", output], check=True, stdout=subprocess.DEVNULL)
    return json.loads(output.read_text())["systems"]


@pytest.mark.parametrize("name", ["torch fp32", "onnxruntime fp32", "onnxruntime fp16", "cuda-reference fp16"])
def test_colours_are_right(systems: dict[str, dict[str, float]], name: str) -> None:
    assert systems[name]["psnr_db"] >= 23.0
    assert systems[name]["ms_ssim"] >= 0.9


@pytest.mark.parametrize("name", ["onnxruntime fp16", "cuda-reference fp16"])
def test_fp16_is_as_good_as_fp32(systems: dict[str, dict[str, float]], name: str) -> None:
    assert systems[name]["psnr_to_torch_fp32_db"] >= 45.0
    assert systems[name]["worst_psnr_to_torch_fp32_db"] >= 40.0


def test_fp32_graph_gives_the_same_pictures(systems: dict[str, dict[str, float]]) -> None:
    assert systems["onnxruntime fp32"]["worst_psnr_to_torch_fp32_db"] >= 80.0
    assert systems["onnxruntime fp32"]["largest_difference_levels"] <= 1
