import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from saishiki.runtime.resampling import (
    resize_antialiased,
    resize_bicubic,
    resize_corner_aligned,
    scale_bicubic,
)

# Without fused multiply-adds (x86 before AVX2) torch's plain bicubic itself is off by that much.
FUSED = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
ATOL = 2e-6 if FUSED else 1e-4
FAR = 2e-3
needs_fused = pytest.mark.skipif(not FUSED, reason="needs a processor with AVX2: elsewhere torch's last bits differ")

SIZES = [
    ((300, 220), (224, 224)),
    ((96, 121), (224, 223)),
    ((161, 100), (127, 79)),
    ((37, 53), (101, 17)),
    ((1537, 11), (512, 768)),
    ((8, 8), (64, 300)),
    ((1, 3), (5, 2)),
    ((64, 64), (64, 64)),
    ((700, 9), (1, 1)),
]

RESIZES = {
    "plain": (resize_bicubic, {"mode": "bicubic"}),
    "antialiased": (resize_antialiased, {"mode": "bicubic", "antialias": True}),
    "triangle": (
        lambda x, height, width: resize_antialiased(x, height, width, kernel="bilinear"),
        {"mode": "bilinear", "antialias": True},
    ),
    "corner-aligned": (resize_corner_aligned, {"mode": "bicubic", "antialias": True, "align_corners": True}),
}


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def interpolate(x: np.ndarray, **how: object) -> np.ndarray:
    return F.interpolate(torch.from_numpy(x), **how).numpy()


@pytest.mark.parametrize(("source", "target"), SIZES, ids=str)
@pytest.mark.parametrize("name", RESIZES)
def test_resize_is_torchs(name: str, source: tuple[int, int], target: tuple[int, int]) -> None:
    resize, how = RESIZES[name]
    x = pixels(1, 3, *source)
    np.testing.assert_allclose(resize(x, *target), interpolate(x, size=target, **how), atol=ATOL, rtol=0)


@pytest.mark.parametrize("name", RESIZES)
def test_resize_is_torchs_at_any_length(name: str) -> None:
    resize, how = RESIZES[name]
    rng = np.random.default_rng(1)
    for source, target in rng.integers(1, 1700, (60, 2)).tolist():
        x = pixels(1, 1, 2, source)
        want = interpolate(x, size=(2, target), **how)
        np.testing.assert_allclose(resize(x, 2, target), want, atol=ATOL, rtol=0, err_msg=f"{source} to {target}")


@pytest.mark.parametrize(
    ("resize", "other"),
    [
        ("plain", "antialiased"),
        ("antialiased", "plain"),
        ("corner-aligned", "antialiased"),
        ("triangle", "antialiased"),
    ],
)
@pytest.mark.parametrize("target", [(40, 56), (99, 75)], ids=["smaller", "larger"])
def test_resize_of_another_kind_is_far_outside_the_tolerance(resize: str, other: str, target: tuple[int, int]) -> None:
    # Enlarged, plain and antialiased differ by nothing but the kernel's a inside the borders.
    x = pixels(1, 3, 60, 70)
    got, want = RESIZES[resize][0](x, *target), interpolate(x, size=target, **RESIZES[other][1])
    assert np.abs(got - want)[..., 8:-8, 8:-8].max() > FAR


@pytest.mark.parametrize("factor", [0.125, 0.25, 0.5, 1.0, 2.0, 0.3, 1.7])
def test_scale_bicubic_is_torchs(factor: float) -> None:
    x = pixels(2, 1, 128, 97)
    want = interpolate(x, scale_factor=factor, mode="bicubic")
    np.testing.assert_allclose(scale_bicubic(x, factor), want, atol=ATOL, rtol=0)


def test_scale_bicubic_takes_its_grid_from_the_factor() -> None:
    # 101 x 0.3 = 30.3: the factor steps by 3.333 samples, the sizes by 3.367.
    x = pixels(1, 1, 101, 101)
    scaled = scale_bicubic(x, 0.3)
    assert scaled.shape == (1, 1, 30, 30)
    assert np.abs(scaled - resize_bicubic(x, 30, 30)).max() > FAR


def test_scale_bicubic_by_an_even_factor_is_the_resize_by_size() -> None:
    x = pixels(1, 1, 64, 96)
    np.testing.assert_allclose(scale_bicubic(x, 0.125), resize_bicubic(x, 8, 12), atol=ATOL, rtol=0)


@needs_fused
@pytest.mark.parametrize("factor", [0.125, 0.25, 0.5])
def test_scale_bicubic_is_torchs_to_the_last_bit(factor: float) -> None:
    x = pixels(2, 1, 64, 96)
    np.testing.assert_array_equal(scale_bicubic(x, factor), interpolate(x, scale_factor=factor, mode="bicubic"))


@needs_fused
@pytest.mark.parametrize("factor", [0.125, 0.25, 0.5])
def test_scale_bicubic_lets_ties_fall_as_torch_does(factor: float) -> None:
    levels = np.arange(256, dtype=np.float32)[:, None, None, None] / np.float32(255)
    flat = np.ascontiguousarray(np.broadcast_to(levels, (256, 1, 16, 16)))
    got, want = scale_bicubic(flat, factor), interpolate(flat, scale_factor=factor, mode="bicubic")
    np.testing.assert_array_equal(np.sign(got - levels), np.sign(want - levels))


def test_resize_does_not_clamp() -> None:
    step = np.repeat(np.float32([-1, 1]), 8)[None]
    assert resize_antialiased(step, 1, 32).max() > 1.01
    assert resize_bicubic(step, 1, 32).max() > 1.01


@pytest.mark.parametrize("resize", [resize_bicubic, resize_antialiased, resize_corner_aligned])
def test_resize_computes_in_fp32_over_any_leading_axes(resize: Callable[..., np.ndarray]) -> None:
    x = pixels(2, 3, 9, 11).astype(np.float64)
    got = resize(x, 7, 13)
    assert (got.dtype, got.shape) == (np.float32, (2, 3, 7, 13))
    np.testing.assert_array_equal(got[1, 2], resize(x[1, 2], 7, 13))


def test_resize_needs_little_memory_beside_input_and_output() -> None:
    x = pixels(3, 2048, 1024)
    tracemalloc.start()
    got = resize_antialiased(x, 1024, 512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes + 2 * got.nbytes


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ((7,), (2, 2), r"expected an array \(\.\.\., H, W\) with samples, got \(7,\)"),
        ((3, 0, 7), (2, 2), r"with samples, got \(3, 0, 7\)"),
        ((3, 5, 7), (0, 2), "7x5 cannot be resized to 2x0"),
    ],
)
def test_resize_refuses_what_has_no_samples(shape: tuple[int, ...], size: tuple[int, int], message: str) -> None:
    for resize in (resize_bicubic, resize_antialiased, resize_corner_aligned):
        with pytest.raises(ValueError, match=message):
            resize(np.zeros(shape, np.float32), *size)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), 0.01])
def test_scale_bicubic_refuses_factors_that_leave_nothing(factor: float) -> None:
    with pytest.raises(ValueError, match=r"above 0|cannot be resized"):
        scale_bicubic(np.zeros((1, 8, 8), np.float32), factor)
