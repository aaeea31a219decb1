"""A ``libcuda.so.1`` whose every call fails, for planning on a machine without a driver.

cuDNN from 9.20 or so on is linked against the driver's library and does not load without it, though planning a
convolution calls nothing of it. NVIDIA's toolkit has such a library for linking (``stubs/libcuda.so``); this one is
made where it is needed, with a C compiler.

The library stays in the process and is found there by everything that looks for a driver later. So it is for a process
that plans and ends, as :func:`saishiki.runtime.backends.cudnn.plan_elsewhere` starts one, never for one that runs
networks.
"""

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

from saishiki.runtime.errors import BackendError

_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_LINKED = (
    "cuGetErrorString",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuTensorMapEncodeIm2col",
    "cuTensorMapEncodeTiled",
)
# Looked up by name; cuDNN writes a line for each that it misses.
_LOOKED_UP = (
    "cuInit",
    "cuCtxGetCurrent",
    "cuCtxGetLimit",
    "cuCtxPopCurrent",
    "cuCtxPushCurrent",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuKernelGetAttribute",
    "cuKernelGetFunction",
    "cuKernelSetAttribute",
    "cuLaunchCooperativeKernel",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cuLibraryGetKernel",
    "cuLibraryLoadData",
    "cuLibraryLoadFromFile",
    "cuLibraryUnload",
    "cuLinkAddData",
    "cuLinkComplete",
    "cuLinkCreate",
    "cuLinkDestroy",
    "cuOccupancyMaxPotentialClusterSize",
    "cuStreamGetCtx",
)


def stand_in_for_driver() -> bool:
    """Loads the stand-in where there is no driver's library; returns whether it did. Nothing undoes it.

    Raises ``BackendError`` where there is no C compiler.
    """
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with tempfile.TemporaryDirectory() as folder:
            ctypes.CDLL(str(_build(Path(folder))), ctypes.RTLD_GLOBAL)
        return True
    return False


def _build(folder: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise BackendError("planning without an NVIDIA driver takes a C compiler for a stand-in; install gcc")
    source, library = folder / "stand_in.c", folder / "libcuda.so.1"
    source.write_text("".join(f"int {name}(void) {{ return {_NO_DEVICE}; }}\n" for name in (*_LINKED, *_LOOKED_UP)))
    command = [compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", str(source), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BackendError(f"the stand-in for the driver does not compile: {done.stderr.strip()}; run: {command}")
    return library
