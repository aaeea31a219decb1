import os
from pathlib import Path

import pytest
from battery import checkout
from battery.checkout import commit_of_checkout, gpu_name, importable, sources_digest


def test_importable_links_the_checkout_where_saishiki_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkout.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PYTHONPATH", "before")
    environ = importable(tmp_path)
    path, before = environ["PYTHONPATH"].split(os.pathsep)
    assert before == "before"
    assert (Path(path) / "saishiki" / "runtime" / "errors.py").is_file()


def test_importable_does_not_hand_the_interpreter_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "TRITON_INTERPRET" not in importable(tmp_path)


def test_gpu_name_is_a_folder_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "asked", lambda query: "NVIDIA GeForce RTX 4090")
    assert gpu_name() == "nvidia-geforce-rtx-4090"
    monkeypatch.setattr(checkout, "asked", lambda query: None)
    assert gpu_name() == "none"


def test_asked_without_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert checkout.asked("name") is None


def test_commit_of_checkout_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert commit_of_checkout() == "unknown"


def test_sources_digest_changes_with_a_source_and_not_with_a_result(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "benchmarks").mkdir()
    source = tmp_path / "kernels" / "a.py"
    source.write_text("x = 1")
    first = sources_digest(tmp_path)
    (tmp_path / "benchmarks" / "results.json").write_text("{}")
    assert sources_digest(tmp_path) == first
    source.write_text("x = 2")
    assert sources_digest(tmp_path) != first
    source.rename(tmp_path / "kernels" / "b.py")
    renamed = sources_digest(tmp_path)
    assert renamed != first
