import importlib
import subprocess
import sys

import pytest
import torch

from saishiki.models import beside_cpu_torch
from saishiki.models.beside_cpu_torch import MISSING_OPERATOR, import_beside_cpu_torch


@pytest.fixture
def declared(monkeypatch):
    """Counts the declarations, and makes none."""
    calls = []
    monkeypatch.setattr(beside_cpu_torch, "declare_operators", lambda: calls.append("declared"))
    return calls


def importing(monkeypatch, *results):
    """Makes each import give the next of these results, or raise it."""
    remaining = iter(results)

    def import_module(name):
        result = next(remaining)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(importlib, "import_module", import_module)


def test_import_that_succeeds_declares_nothing(declared):
    assert import_beside_cpu_torch("math").floor(2.5) == 2
    assert declared == []


def test_import_that_misses_the_operator_is_repeated_with_it_declared(declared, monkeypatch):
    importing(monkeypatch, RuntimeError(f"Failed to import x: {MISSING_OPERATOR}"), "the module")
    assert import_beside_cpu_torch("open_clip.transformer") == "the module"
    assert declared == ["declared"]


def test_import_that_fails_twice_raises(declared, monkeypatch):
    importing(monkeypatch, RuntimeError(MISSING_OPERATOR), RuntimeError(MISSING_OPERATOR))
    with pytest.raises(RuntimeError, match="nms does not exist"):
        import_beside_cpu_torch("open_clip.transformer")


def test_import_that_fails_otherwise_raises(declared, monkeypatch):
    importing(monkeypatch, RuntimeError("operator torchvision::roi_align does not exist"))
    with pytest.raises(RuntimeError, match="roi_align"):
        import_beside_cpu_torch("open_clip.transformer")
    assert declared == []


def test_import_of_what_is_absent_names_the_extra(declared):
    with pytest.raises(
        ModuleNotFoundError, match=r"no module 'no_such_package', wanted for no_such_package\.inner: pip "
    ):
        import_beside_cpu_torch("no_such_package.inner")
    assert declared == []


def test_open_clip_and_diffusers_import_beside_any_build_of_torch():
    """In a process of its own, where neither has been imported yet; the two in both orders."""
    pytest.importorskip("diffusers", reason="needs diffusers: pip install 'saishiki[export]'")
    script = (
        "from saishiki.models.beside_cpu_torch import import_beside_cpu_torch as wanted\n"
        "print(wanted('diffusers.models.autoencoders.autoencoder_kl').AutoencoderKL.__name__)\n"
        "print(wanted('open_clip.transformer').VisionTransformer.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["AutoencoderKL", "VisionTransformer"], done.stderr


def test_declared_operators_compute_nothing():
    library = torch.library.Library("saishiki_test_operators", "DEF")
    library.define("nms(Tensor x) -> Tensor")
    with pytest.raises(NotImplementedError, match="saishiki_test_operators::nms"):
        torch.ops.saishiki_test_operators.nms(torch.zeros(1))
