"""Choosing a cubin, and packing what a launch passes."""

from dataclasses import replace

import numpy as np
import pytest

from saishiki.runtime.backends.cubins import CubinEntry, CubinIndex, find_cubin, packed_arguments, read_cubin_index
from saishiki.runtime.errors import BackendError

INDEX = read_cubin_index()
ENTRY = find_cubin(INDEX, "ddim_step_noise", "sm89")
ARGUMENTS = {"x_ptr": 256, "eps_ptr": 512, "noise_ptr": 768, "out_ptr": 1024, "coefficients_ptr": 1280, "k": 3, "n": 64}


@pytest.mark.parametrize(
    ("target", "file"),
    [
        ("sm80", "ddim_step.sm80.cubin"),
        ("sm86", "ddim_step.sm86.cubin"),
        ("sm87", "ddim_step.sm86.cubin"),
        ("sm89", "ddim_step.sm89.cubin"),
        ("sm90", "ddim_step.sm90.cubin"),
        ("sm120", "ddim_step.sm120.cubin"),
    ],
)
def test_find_cubin_takes_the_closest(target: str, file: str) -> None:
    assert find_cubin(INDEX, "ddim_step", target).file == file


@pytest.mark.parametrize("target", ["sm75", "sm100", "sm121"])
def test_find_cubin_names_what_there_is(target: str) -> None:
    with pytest.raises(BackendError, match=rf"compiled for sm80, sm86, sm89, sm90, sm120, not for this GPU's {target}"):
        find_cubin(INDEX, "ddim_step", target)


def test_find_cubin_of_an_unknown_kernel() -> None:
    with pytest.raises(BackendError, match="the kernel group_norm is compiled for nothing"):
        find_cubin(INDEX, "group_norm", "sm89")


def test_find_cubin_takes_plain_archs_for_later_minors() -> None:
    plain = replace(find_cubin(INDEX, "ddim_step", "sm120"), arch="sm_120")
    assert find_cubin(CubinIndex("", {}, (plain,)), "ddim_step", "sm121") is plain


def test_packed_arguments_are_in_order_and_in_the_kernels_types() -> None:
    packed = packed_arguments(ENTRY, dict(reversed(ARGUMENTS.items())))
    assert packed == [256, 512, 768, 1024, 1280, 3, 64, 0, 0]
    assert [type(value) for value in packed] == [int] * 5 + [np.int32, np.int64] + [int] * 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x_ptr": 260}, ValueError, "x_ptr must be a multiple of 16, got 260"),
        ({"n": 63}, ValueError, "n must be a multiple of 16, got 63"),
        ({"guidance": 1}, TypeError, "ddim_step_noise takes"),
    ],
    ids=["address", "elements", "unknown"],
)
def test_packed_arguments_refuses(change: dict[str, int], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        packed_arguments(ENTRY, ARGUMENTS | change)


def test_packed_arguments_refuses_a_missing_one() -> None:
    with pytest.raises(TypeError, match="ddim_step_noise takes"):
        packed_arguments(ENTRY, {"x_ptr": 256})


def test_index_lists_a_kernel_once_per_target() -> None:
    def key(cubin: CubinEntry) -> tuple[str, str]:
        return cubin.name, cubin.target

    assert len({key(cubin) for cubin in INDEX.cubins}) == len(INDEX.cubins)
