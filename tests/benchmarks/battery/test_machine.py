import subprocess
from typing import Any

import pytest
from battery import machine
from battery.machine import environment, gpu_tests, kernels
from battery.part import Options

DRY_RUN = Options(dry_run=True)


def test_environment_says_what_is_there_and_why_the_rest_is_not(no_cudnn_module: None) -> None:
    rows = {name: value for row in environment(DRY_RUN) for name, value in row.items()}
    assert rows["torch"]
    assert rows["cudnn-frontend"] == "cudnn-frontend is not installed; run: pip install 'nvidia-cudnn-frontend<1.28'"
    assert {"driver_problem", "tensorrt", "tensorrt-rtx"} <= rows.keys()


@pytest.fixture
def no_cudnn_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where cudnn-frontend is not installed."""
    from executor_window import cudnn_library

    find = cudnn_library.importlib.util.find_spec
    monkeypatch.setattr(cudnn_library.importlib.util, "find_spec", lambda name: None if name == "cudnn" else find(name))


@pytest.mark.parametrize(("options", "collects"), [(DRY_RUN, True), (Options(dry_run=False), False)])
def test_gpu_tests_runs_them_or_collects_them(
    options: Options, collects: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "5 passed", "")

    monkeypatch.setattr(machine.subprocess, "run", run)
    assert list(gpu_tests(options)) == [{"returncode": 0, "output": "5 passed", "errors": ""}]
    assert ("--collect-only" in commands[0]) is collects
    assert commands[0][commands[0].index("-m", 3) + 1] == "gpu"


def test_gpu_tests_that_fail_fail_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 1, "1 failed", "")
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: done)
    rows = gpu_tests(DRY_RUN)
    assert next(rows)["output"] == "1 failed"
    with pytest.raises(RuntimeError, match="ended with status 1"):
        next(rows)


def test_kernels_fails_with_the_names_of_what_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"op": "a", "case": "b", "red": True}, {"op": "c", "case": "d", "red": False}]
    monkeypatch.setattr("kernel_bench.measure.measured_rows", lambda cases, bench: iter(rows))
    found = kernels(DRY_RUN)
    assert [next(found) for _ in range(3)] == [{"what": "ceilings"}, *rows]
    with pytest.raises(RuntimeError, match=r"^red: a, b$"):
        next(found)
