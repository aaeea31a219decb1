"""How many blocks of a kernel live on one multiprocessor at a time, as NVIDIA's occupancy calculator counts them.

Limits per compute capability: CUDA Programming Guide, "Features and Technical Specifications". How registers and shared
memory are handed out: ``cuda_occupancy.h`` of the CUDA toolkit (registers by warp in units of 256, from the quarter of
the register file that the warp lives on; shared memory by block in units of 128 bytes, 1 KiB of it for the system).
"""

from collections.abc import Mapping
from dataclasses import dataclass

KIB = 1024
WARP = 32
REGISTERS = 65536
QUARTERS = 4
REGISTER_UNIT = 256
SHARED_UNIT_BYTES = 128
SYSTEM_SHARED_BYTES = KIB


@dataclass(frozen=True)
class Multiprocessor:
    """What one multiprocessor holds."""

    threads: int
    blocks: int
    shared_bytes: int


MULTIPROCESSORS: Mapping[str, Multiprocessor] = {
    "sm80": Multiprocessor(2048, 32, 164 * KIB),
    "sm86": Multiprocessor(1536, 16, 100 * KIB),
    "sm89": Multiprocessor(1536, 24, 100 * KIB),
    "sm90": Multiprocessor(2048, 32, 228 * KIB),
    "sm120": Multiprocessor(1536, 24, 100 * KIB),
}


@dataclass(frozen=True)
class Occupancy:
    """Blocks on one multiprocessor, the share of its warps they fill, and what stops the next block."""

    blocks: int
    share: float
    limits: tuple[str, ...]


def occupancy(target: str, *, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """The occupancy of blocks of ``threads`` threads on a target such as ``sm89``; 0 blocks where none fits."""
    sm = MULTIPROCESSORS[target]
    warps = _divided(threads, WARP)
    allowed = {
        "warps": sm.threads // WARP // warps,
        "blocks": sm.blocks,
        "registers": _blocks_by_registers(registers, warps),
        "shared memory": sm.shared_bytes // _rounded(shared_bytes + SYSTEM_SHARED_BYTES, SHARED_UNIT_BYTES),
    }
    blocks = min(allowed.values())
    limits = tuple(name for name, count in allowed.items() if count == blocks)
    return Occupancy(blocks, blocks * warps * WARP / sm.threads, limits)


def _blocks_by_registers(registers: int, warps: int) -> int:
    by_warp = _rounded(registers * WARP, REGISTER_UNIT)
    # The check at launch takes a block's warps as spread over all quarters.
    if by_warp * _rounded(warps, QUARTERS) > REGISTERS:
        return 0
    return REGISTERS // QUARTERS // by_warp * QUARTERS // warps


def _divided(n: int, by: int) -> int:
    return -(-n // by)


def _rounded(n: int, unit: int) -> int:
    return _divided(n, unit) * unit
