"""cuDNN's graph API through ``cudnn-frontend``: why it is not there, and the properties of GPUs that are not there.

A plan can be made without a GPU when cuDNN is told the properties of one. Those below are of the vendor's tables, under
cuDNN's own names; the window compares them with what the device says.
"""

import ctypes
import glob
import importlib
import importlib.util
import json
import os
from collections.abc import Mapping
from typing import Any

INSTALL = "pip install 'nvidia-cudnn-frontend<1.28'"
LIBRARIES = (
    "cu13/lib/libnvrtc.so.*",  # engines that cuDNN compiles at run time
    "cu13/lib/libcublasLt.so.*",
    "cudnn/lib/libcudnn_graph.so.9",
    "cudnn/lib/libcudnn.so.9",
)

COMMON: Mapping[str, Any] = {
    "maxGridSize": [2147483647, 65535, 65535],
    "maxBlockSize": [1024, 1024, 64],
    "regsPerBlock": 65536,
    "smCountOrigin": 0,
    "warpSize": 32,
    "maxSharedMemoryPerBlock": 49152,
    "oversizedSharedMemoryPerBlock": 0,
    "reservedSharedMemoryPerBlock": 1024,
    "maxRegistersPerSM": 65536,
    "maxThreadsPerBlock": 1024,
    "pciDeviceId": 0,
    "isTccDriver": 0,
    "supportCoopLaunch": 1,
    "cudaDeviceId": 0,
    "driverVer": 13000,
}
PROPERTIES: Mapping[int, Mapping[str, Any]] = {
    90: {
        "deviceName": "NVIDIA H200",
        "multiProcessorCount": 132,
        "maxSharedMemoryPerBlockOptin": 232448,
        "maxCtasPerSM": 32,
        "maxThreadsPerSM": 2048,
        "totalGlobalMem": 150754820096,
        "smClockRateKHz": 1980000,
        "memClockRateKHz": 3201000,
        "memoryBusWidth": 6144,
        "l2CacheSize": 62914560,
    },
    89: {
        "deviceName": "NVIDIA GeForce RTX 4090",
        "multiProcessorCount": 128,
        "maxSharedMemoryPerBlockOptin": 101376,
        "maxCtasPerSM": 24,
        "maxThreadsPerSM": 1536,
        "totalGlobalMem": 25386352640,
        "smClockRateKHz": 2520000,
        "memClockRateKHz": 10501000,
        "memoryBusWidth": 384,
        "l2CacheSize": 75497472,
    },
}


def why_no_cudnn() -> str | None:
    """Why cuDNN's graph API cannot be used here; None where it can be imported."""
    if importlib.util.find_spec("cudnn") is None:
        return f"cudnn-frontend is not installed; run: {INSTALL}"
    try:
        import_cudnn()
    except (ImportError, OSError, RuntimeError) as error:
        return f"cudnn-frontend does not load: {error}"
    return None


def import_cudnn() -> Any:
    """The module ``cudnn``, with the libraries it needs loaded from the ``nvidia`` wheels where they are."""
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec else []:
        for pattern in LIBRARIES:
            for path in glob.glob(os.path.join(root, pattern)):
                ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
    return importlib.import_module("cudnn")


def written_properties(cudnn: Any, sm: int) -> Any:
    """Properties of a GPU that is not at hand; raises ``ValueError`` for one that is not in the table."""
    if sm not in PROPERTIES:
        raise ValueError(f"no properties are written down for sm{sm}; expected one of {sorted(PROPERTIES)}")
    return cudnn.create_device_properties(json.dumps(property_values(sm)))


def property_values(sm: int) -> dict[str, Any]:
    """As JSON has them."""
    return {**COMMON, **PROPERTIES[sm], "deviceVer": 10 * sm}


def compare_properties(own: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """Where the device says something else than what is written down, and what each says."""
    names = sorted(own.keys() | written.keys())
    return {
        name: {"device": own.get(name), "written": written.get(name)}
        for name in names
        if own.get(name) != written.get(name)
    }
