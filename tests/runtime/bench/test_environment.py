import stat

import pytest

from saishiki.runtime.bench import environment
from saishiki.runtime.bench.environment import describe_environment, gpus_from_csv, read_gpus
from saishiki.runtime.bench.schema import GpuState

H200 = "NVIDIA H200, 580.95.05, 1980, 3201, 700.00, 31, 614\n"


def test_gpus_from_csv():
    partly = "NVIDIA GeForce RTX 4090, 591.1, [N/A], 10501, [Not Supported], 45, [N/A]\n"
    assert gpus_from_csv(H200 + partly) == (
        GpuState("NVIDIA H200", "580.95.05", 1980, 3201, 700.0, 31, 614 << 20),
        GpuState("NVIDIA GeForce RTX 4090", "591.1", None, 10501, None, 45, None),
    )
    assert gpus_from_csv("") == ()
    assert gpus_from_csv("NVIDIA-SMI has failed\n") == ()


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Puts an ``nvidia-smi`` into the path that runs a line of shell."""

    def install(line):
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\n{line}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return install


def test_read_gpus_asks_for_the_visible_ones(nvidia_smi, monkeypatch):
    nvidia_smi('echo "asked $3 $4, 1, 2, 3, 4, 5, 6"')
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [gpu.name for gpu in read_gpus()] == ["asked"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-uuid")
    assert [gpu.name for gpu in read_gpus()] == ["asked -i GPU-uuid"]


@pytest.mark.parametrize("line", ["echo a, 1, 2, 3, 4, 5, 6; exit 9", "exec sleep 20"])
def test_read_gpus_where_the_driver_fails_or_hangs(nvidia_smi, monkeypatch, line):
    monkeypatch.setattr(environment, "_PATIENCE_S", 0.2)
    nvidia_smi(line)
    assert read_gpus() == ()


def test_read_gpus_without_a_driver(monkeypatch):
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    assert read_gpus() == ()


def test_describe_environment(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package"))
    found = describe_environment()
    assert found.cores >= 1
    assert found.memory_bytes > 1 << 28
    assert list(found.packages) == ["numpy"]
    assert found.processor != ""
