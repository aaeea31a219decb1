"""Occupancy against numbers that NVIDIA's own tools gave, and against placing warps one by one."""

import pytest
from occupancy import MULTIPROCESSORS, occupancy


@pytest.mark.parametrize(
    ("target", "threads", "registers", "shared_bytes", "blocks", "limit"),
    [
        # Nsight Compute of a kernel on sm_89: launch__occupancy_limit_registers = 20.
        ("sm89", 64, 48, 0, 20, "registers"),
        # cudaOccupancyMaxActiveBlocksPerMultiprocessor's own words in the guide: 1536 threads are 6 blocks of 256.
        ("sm86", 256, 32, 0, 6, "warps"),
        ("sm80", 256, 32, 0, 8, "warps"),
        # The largest block that may ask for every byte of shared memory.
        ("sm80", 128, 32, 163 * 1024, 1, "shared memory"),
        ("sm89", 128, 32, 99 * 1024, 1, "shared memory"),
        ("sm90", 128, 32, 227 * 1024, 1, "shared memory"),
        ("sm89", 128, 32, 99 * 1024 + 1, 0, "shared memory"),
        # FlashAttention-3's 384 threads of 168 registers fill the register file.
        ("sm90", 384, 168, 0, 1, "registers"),
        ("sm90", 128, 255, 0, 2, "registers"),
        ("sm86", 32, 16, 0, 16, "blocks"),
        ("sm120", 32, 16, 0, 24, "blocks"),
    ],
)
def test_occupancy_of_known_kernels(
    target: str, threads: int, registers: int, shared_bytes: int, blocks: int, limit: str
) -> None:
    found = occupancy(target, threads=threads, registers=registers, shared_bytes=shared_bytes)
    assert found.blocks == blocks
    assert limit in found.limits
    assert found.share == blocks * threads / MULTIPROCESSORS[target].threads


def placed_one_by_one(target: str, threads: int, registers: int) -> int:
    """Blocks that fit when every warp takes its registers from the emptiest quarter of the register file."""
    free = [65536 // 4] * 4
    need = -(-registers * 32 // 256) * 256
    blocks = 0
    while blocks < MULTIPROCESSORS[target].blocks and (blocks + 1) * threads <= MULTIPROCESSORS[target].threads:
        for _ in range(threads // 32):
            quarter = free.index(max(free))
            if free[quarter] < need:
                return blocks
            free[quarter] -= need
        blocks += 1
    return blocks


@pytest.mark.parametrize("target", MULTIPROCESSORS)
@pytest.mark.parametrize("threads", [32, 64, 128, 256, 512])
def test_occupancy_is_what_fits_when_placed_one_by_one(target: str, threads: int) -> None:
    for registers in range(16, 256 if threads <= 256 else 129):
        found = occupancy(target, threads=threads, registers=registers, shared_bytes=0)
        assert found.blocks == placed_one_by_one(target, threads, registers), registers


def test_occupancy_of_what_cannot_be_launched() -> None:
    assert occupancy("sm90", threads=1024, registers=128, shared_bytes=0).blocks == 0
