"""What cuDNN wants to know of a GPU that it plans for, where there is none: properties of three, from vendors' tables.

On a machine that has the GPU, ``cudnn.create_device_properties(0).serialize()`` is the same with the true values; field
names and units are cuDNN's.
"""

import json
from collections.abc import Mapping

_EVERYWHERE: Mapping[str, object] = {
    "cudaDeviceId": 0,
    "driverVer": 13000,
    "isTccDriver": 0,
    "maxBlockSize": [1024, 1024, 64],
    "maxGridSize": [2147483647, 65535, 65535],
    "maxRegistersPerSM": 65536,
    "maxSharedMemoryPerBlock": 49152,
    "maxThreadsPerBlock": 1024,
    "oversizedSharedMemoryPerBlock": 0,
    "pciDeviceId": 0,
    "regsPerBlock": 65536,
    "reservedSharedMemoryPerBlock": 1024,
    "smCountOrigin": 0,
    "supportCoopLaunch": 1,
    "warpSize": 32,
}

GPUS: Mapping[int, Mapping[str, object]] = {
    80: {
        "deviceName": "NVIDIA A100-SXM4-80GB",
        "multiProcessorCount": 108,
        "maxSharedMemoryPerBlockOptin": 166912,
        "maxCtasPerSM": 32,
        "maxThreadsPerSM": 2048,
        "totalGlobalMem": 85899345920,
        "smClockRateKHz": 1410000,
        "memClockRateKHz": 1593000,
        "memoryBusWidth": 5120,
        "l2CacheSize": 41943040,
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
}
"""By compute capability, 90 being 9.0: what differs between them."""


def properties_of(sm: int) -> str:
    """The properties of a GPU as JSON, for ``cudnn.create_device_properties``.

    Args:
        sm: the compute capability, 90 being 9.0.

    Raises ``ValueError`` for one that is not in :data:`GPUS`.
    """
    if sm not in GPUS:
        known = ", ".join(map(str, GPUS))
        raise ValueError(f"no properties of a GPU of compute capability {sm} are known here; expected one of {known}")
    return json.dumps({**_EVERYWHERE, **GPUS[sm], "deviceVer": sm * 10})
