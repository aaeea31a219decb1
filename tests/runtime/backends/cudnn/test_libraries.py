"""Finding cuDNN: what is said where it is missing, or of another version."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from saishiki.runtime.backends.cudnn import libraries
from saishiki.runtime.backends.cudnn.libraries import load_cudnn, version_from_number, why_cudnn_unavailable
from saishiki.runtime.errors import BackendError

ROOT = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No library of this machine is found, and none is remembered."""
    monkeypatch.setattr(libraries, "_wheel_folders", lambda: iter(()))
    load_cudnn.cache_clear()
    yield
    load_cudnn.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, **members: Any) -> Any:
    """Makes a module the installed frontend."""
    defaults = {
        "__version__": "1.22.1",
        "__file__": "/site/cudnn/__init__.py",
        "backend_version": lambda: 91900,
        "pygraph": object,
    }
    module = SimpleNamespace(**{**defaults, **members})
    monkeypatch.setitem(sys.modules, "cudnn", module)
    return module


def test_load_states_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    module = install(monkeypatch)
    cudnn = load_cudnn()
    assert (cudnn.frontend, cudnn.version, cudnn.frontend_version) == (module, "9.19.0", "1.22.1")
    assert load_cudnn() is cudnn
    assert why_cudnn_unavailable() is None


@pytest.mark.parametrize("version", ["1.22.0", "1.27.99"])
@pytest.mark.parametrize("number", [91900, 92800])
def test_load_takes_known_versions(monkeypatch: pytest.MonkeyPatch, version: str, number: int) -> None:
    install(monkeypatch, __version__=version, backend_version=lambda: number)
    assert load_cudnn().version == version_from_number(number)


def test_load_without_the_frontend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cudnn", None)
    with pytest.raises(BackendError, match=r"nvidia-cudnn-frontend is not installed or not complete .*; run: pip"):
        load_cudnn()
    assert why_cudnn_unavailable() is not None


def test_load_of_another_module_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cudnn", SimpleNamespace(__file__="/somewhere/cudnn.py"))
    with pytest.raises(BackendError, match=r"/somewhere/cudnn\.py is not nvidia-cudnn-frontend; run: pip install"):
        load_cudnn()


def test_load_without_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> int:
        raise RuntimeError("Unable to find symbol cudnnGetVersion")

    install(monkeypatch, backend_version=missing)
    with pytest.raises(BackendError, match=r"cuDNN \(libcudnn.so.9\) is not found: .*GetVersion; run: pip install"):
        load_cudnn()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"__version__": "1.21.0"}, "nvidia-cudnn-frontend 1.21.0 is installed, expected 1.22 or newer, before 1.28"),
        ({"__version__": "1.28.0"}, "nvidia-cudnn-frontend 1.28.0 is installed"),
        ({"__version__": "unknown"}, "nvidia-cudnn-frontend unknown is installed"),
        ({"backend_version": lambda: 91802}, "cuDNN 9.18.2 is installed, expected 9.19 or newer, before 10.0"),
        ({"backend_version": lambda: 100000}, "cuDNN 10.0.0 is installed"),
    ],
)
def test_load_of_another_version(monkeypatch: pytest.MonkeyPatch, members: dict[str, Any], message: str) -> None:
    install(monkeypatch, **members)
    with pytest.raises(BackendError, match=message):
        load_cudnn()
    assert "pip install" in str(why_cudnn_unavailable())


def test_load_of_a_damaged_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / "cudnn" / "lib" / "libcudnn.so.9"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"not a library")
    monkeypatch.setattr(libraries, "_wheel_folders", lambda: iter([tmp_path / "empty", tmp_path]))
    with pytest.raises(BackendError, match=r"cuDNN does not load \(.*\); install it anew: pip install"):
        load_cudnn()


def test_wheel_folders_are_those_of_the_namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    (tmp_path / "nvidia").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    assert tmp_path / "nvidia" in list(libraries._wheel_folders())


def test_the_extra_installs_what_is_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = libraries.INSTALL.removeprefix("pip install ").strip("'").split("' '")
    assert len(wanted) == 3
    assert set(wanted) <= set(project["optional-dependencies"]["cuda"])


def test_the_package_loads_nothing() -> None:
    code = "import json, sys, saishiki.runtime.backends.cudnn; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert loaded & {"cudnn", "cuda", "torch", "triton", "onnx"} == set()
