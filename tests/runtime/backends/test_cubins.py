"""Choosing a cubin, packing what a launch passes, and its grid."""

from dataclasses import replace

import numpy as np
import pytest

from saishiki.runtime.backends.cubins import (
    CUBINS,
    CubinEntry,
    CubinIndex,
    find_cubin,
    grid_of,
    packed_arguments,
    read_cubin_index,
)
from saishiki.runtime.errors import BackendError

ENTRY = CubinEntry(
    name="scale",
    target="sm80",
    arch="sm_80",
    file="scale.sm80.cubin",
    sha256="",
    source_sha256="",
    entry="_scale_kernel",
    args=(
        ("x_ptr", "*fp32"),
        ("out_ptr", "*fp16"),
        ("k", "i32"),
        ("n", "i64"),
        ("rows", "i32"),
        ("heads", "i32"),
        ("factor", "fp32"),
        ("scratch", "null"),
    ),
    constexprs={"BLOCK": 64},
    aligned=("x_ptr", "n"),
    grid=((("n",), 64), (("rows", "heads"), 1)),
    threads=128,
    shared_bytes=0,
    registers=16,
    spill_bytes=0,
)
ARGUMENTS = {"x_ptr": 256, "out_ptr": 512, "k": 3, "n": 80, "rows": 2, "heads": 5, "factor": 0.5}


def index_of(*targets: str, arch: str = "") -> CubinIndex:
    entries = [replace(ENTRY, target=f"sm{sm}", arch=arch or f"sm_{sm}", file=f"scale.sm{sm}.cubin") for sm in targets]
    return CubinIndex("3.9.0", {}, tuple(entries))


@pytest.mark.parametrize(
    ("target", "own"),
    [("sm80", "sm80"), ("sm86", "sm86"), ("sm87", "sm86"), ("sm89", "sm86"), ("sm90", "sm90"), ("sm121", "sm120")],
)
def test_find_cubin_takes_the_closest(target: str, own: str) -> None:
    assert find_cubin(index_of("80", "86", "90", "120"), "scale", target).file == f"scale.{own}.cubin"


@pytest.mark.parametrize("target", ["sm75", "sm100"])
def test_find_cubin_names_what_there_is(target: str) -> None:
    with pytest.raises(BackendError, match=rf"scale is compiled for sm80, sm90, not for this GPU's {target}"):
        find_cubin(index_of("80", "90"), "scale", target)


def test_find_cubin_takes_an_arch_of_its_own_for_nothing_else() -> None:
    index = index_of("90", arch="sm_90a")
    assert find_cubin(index, "scale", "sm90") is index.cubins[0]
    with pytest.raises(BackendError, match="not for this GPU's sm91"):
        find_cubin(index, "scale", "sm91")


def test_find_cubin_of_an_unknown_kernel() -> None:
    with pytest.raises(BackendError, match="the kernel softmax is compiled for nothing"):
        find_cubin(index_of("80"), "softmax", "sm89")


def test_packed_arguments_are_in_order_and_in_the_kernels_types() -> None:
    packed = packed_arguments(ENTRY, dict(reversed(ARGUMENTS.items())))
    assert packed == [256, 512, 3, 80, 2, 5, 0.5, 0]
    types = [int, int, np.int32, np.int64, np.int32, np.int32, np.float32, int]
    assert [type(value) for value in packed] == types


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x_ptr": 260}, ValueError, "scale: x_ptr must be a multiple of 16, got 260"),
        ({"n": 63}, ValueError, "scale: n must be a multiple of 16, got 63"),
        ({"guidance": 1}, TypeError, "scale takes"),
    ],
    ids=["address", "elements", "unknown"],
)
def test_packed_arguments_refuses(change: dict[str, int], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        packed_arguments(ENTRY, ARGUMENTS | change)


def test_packed_arguments_refuses_a_missing_one() -> None:
    with pytest.raises(TypeError, match="scale takes"):
        packed_arguments(ENTRY, {"x_ptr": 256})


@pytest.mark.parametrize(("n", "blocks"), [(0, 1), (16, 1), (64, 1), (80, 2), (2**36, 2**30)], ids=str)
def test_grid_of_rounds_up(n: int, blocks: int) -> None:
    assert grid_of(ENTRY, ARGUMENTS | {"n": n}) == (blocks, 10)


@pytest.mark.parametrize(("name", "value"), [("n", 2**37), ("rows", 13108)])
def test_grid_of_refuses_more_blocks_than_cuda_has(name: str, value: int) -> None:
    with pytest.raises(ValueError, match="blocks, more than"):
        grid_of(ENTRY, ARGUMENTS | {name: value})


def test_shipped_index_lists_a_kernel_once_per_target() -> None:
    cubins = read_cubin_index().cubins
    assert len({(cubin.name, cubin.target) for cubin in cubins}) == len(cubins)
    assert all((CUBINS / cubin.file).is_file() for cubin in cubins)
