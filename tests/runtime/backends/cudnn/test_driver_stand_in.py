"""The driver's stand-in: that it loads, that every call fails, and what is said where it cannot be made."""

import ctypes
import shutil
import subprocess
import sys
from typing import Any

import pytest

from saishiki.runtime.backends.cudnn import driver_stand_in
from saishiki.runtime.backends.cudnn.driver_stand_in import stand_in_for_driver
from saishiki.runtime.errors import BackendError

CODE = """
import ctypes
from saishiki.runtime.backends.cuda import driver_problem
from saishiki.runtime.backends.cudnn.driver_stand_in import stand_in_for_driver
print([stand_in_for_driver(), stand_in_for_driver()])
print(ctypes.CDLL("libcuda.so.1").cuLibraryLoadData(0), driver_problem())
"""


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver, which needs no stand-in")
@pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="needs a C compiler: install gcc")
def test_the_stand_in_is_loaded_once_and_fails_every_call() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[True, False]\n100 the NVIDIA driver finds no GPU"


def test_stand_in_beside_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_stand_in.ctypes, "CDLL", lambda name, *mode: None)
    monkeypatch.setattr(driver_stand_in.subprocess, "run", lambda *command, **options: pytest.fail("it was made"))
    assert stand_in_for_driver() is False


def no_driver(*_: Any) -> None:
    raise OSError("libcuda.so.1: cannot open shared object file")


def test_stand_in_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_stand_in.ctypes, "CDLL", no_driver)
    monkeypatch.setattr(driver_stand_in.shutil, "which", lambda name: None)
    with pytest.raises(BackendError, match="takes a C compiler for a stand-in; install gcc"):
        stand_in_for_driver()


def test_stand_in_that_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_stand_in.ctypes, "CDLL", no_driver)
    false = shutil.which("false")
    monkeypatch.setattr(driver_stand_in.shutil, "which", lambda name: false)
    with pytest.raises(BackendError, match=r"the stand-in for the driver does not compile: .*; run: "):
        stand_in_for_driver()
