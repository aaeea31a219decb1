"""What the ops do, counted by formula and by walking through every token, key and number of tiny cases."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from kernel_bench.work import (
    Regions,
    attention_work,
    convolution_work,
    group_norm_work,
    projection_work,
    sampler_work,
)
from roofline import Work

from saishiki.runtime.backends.convolution_tiles import ConvolutionShape

MASKS = ["foreground", "background", "mixed", "batch differs"]


def regions(mask: str, *, batch: int = 2, tokens: int = 11, block: int = 4, both: bool = False) -> Regions:
    rng = np.random.default_rng(3)
    foreground = {
        "foreground": np.ones((batch, tokens), bool),
        "background": np.zeros((batch, tokens), bool),
        "mixed": rng.random((batch, tokens)) > 0.6,
        "batch differs": np.arange(batch)[:, None] + np.zeros((batch, tokens)) > 0,
    }[mask]
    return Regions(foreground, ~foreground | both, block)


def tiles_of(case: Regions) -> list[tuple[int, range]]:
    batch, tokens = case.foreground.shape
    return [(b, range(t, min(t + case.block, tokens))) for b in range(batch) for t in range(0, tokens, case.block)]


@pytest.mark.parametrize("both", [False, True], ids=["selected", "merged"])
@pytest.mark.parametrize("q_bg", [False, True], ids=["packed", "q_bg"])
@pytest.mark.parametrize("mask", MASKS)
def test_attention_work_is_what_a_walk_counts(mask: str, q_bg: bool, both: bool) -> None:
    case, heads, width, fg_tokens, bg_tokens = regions(mask, both=both), 3, 5, 2, 7
    flops, touched = 0, set()
    for b, rows in tiles_of(case):
        keys = []
        if any(case.foreground[b, t] for t in rows):
            keys += range(fg_tokens)
        if any(case.background[b, t] for t in rows):
            keys += range(fg_tokens, fg_tokens + bg_tokens)
        for head, t in product(range(heads), rows):
            touched |= {("mask", b, t, 0, byte) for byte in range(4)}
            for d in range(width):
                names = ("q", "out", "q_bg") if q_bg else ("q", "out")
                touched |= {(name, b, t, (head, d), byte) for name in names for byte in range(2)}
                for key in keys:
                    flops += 4
                    touched |= {(name, b, key, (head, d), byte) for name in "kv" for byte in range(2)}
    found = attention_work(
        case, heads=heads, width=width, fg_tokens=fg_tokens, bg_tokens=bg_tokens, q_bg=q_bg, itemsize=2
    )
    assert found == Work(flops, 0, len(touched), 1)


@pytest.mark.parametrize("mask", MASKS)
def test_projection_work_is_what_a_walk_counts(mask: str) -> None:
    case, k, n = regions(mask), 3, 5
    flops, touched = 0, set()
    for b, rows in tiles_of(case):
        read = [name for name in ("foreground", "background") if any(getattr(case, name)[b, t] for t in rows)]
        for t, i, o in product(rows, range(k), range(n)):
            flops += 2 * len(read)
            touched |= {("mask", b, t, byte) for byte in range(4)}
            touched |= {
                (name, b, at, byte) for name, b, at in (("x", b, (t, i)), ("out", b, (t, o))) for byte in (0, 1)
            }
            touched |= {(name, 0, (o, i), byte) for name in read for byte in (0, 1)}
    assert projection_work(case, channels_in=k, channels_out=n, itemsize=2) == Work(flops, 0, len(touched), 1)


def test_mixed_share_counts_tiles() -> None:
    foreground = np.array([[1, 1, 0, 1, 0, 0, 0]], bool)
    assert Regions(foreground, ~foreground, 2).mixed_share == 1 / 4
    assert Regions(foreground, ~foreground, 7).mixed_share == 1
    assert Regions(foreground, foreground | True, 2).mixed_share == 2 / 4


def test_useful_share_is_what_no_mixed_tile_would_cost() -> None:
    foreground = np.array([[1, 1, 0, 1, 0, 0, 0]], bool)
    assert Regions(foreground, ~foreground, 1).useful_share == 1
    assert Regions(foreground, ~foreground, 2).useful_share == 7 / 9
    assert Regions(foreground, ~foreground, 7).useful_share == 7 / 14
    assert Regions(foreground, foreground | True, 7).useful_share == 10 / 14


def test_order_leaves_one_mixed_tile() -> None:
    checkerboard = np.arange(16).reshape(1, 16) % 2 == 0
    unsorted = Regions(checkerboard, ~checkerboard, 4)
    assert unsorted.mixed_share == 1
    assert unsorted.in_order().mixed_share == 0
    assert Regions(checkerboard[:, :14], ~checkerboard[:, :14], 4).in_order().mixed_share == 1 / 4
    merged = Regions(checkerboard, np.ones_like(checkerboard), 4).in_order()
    assert (merged.foreground.sum(), merged.background.sum()) == (8, 16)
    assert merged.mixed_share == 1 / 2


def test_order_is_read() -> None:
    case = regions("mixed")
    sizes = {"heads": 3, "width": 5, "fg_tokens": 2, "bg_tokens": 7, "q_bg": False, "itemsize": 2}
    without, with_order = (attention_work(case, **sizes, ordered=ordered) for ordered in (False, True))
    assert with_order == replace(without, nbytes=without.nbytes + 4 * case.foreground.size)
    sizes = {"channels_in": 3, "channels_out": 5, "itemsize": 2}
    without, with_order = (projection_work(case, **sizes, ordered=ordered) for ordered in (False, True))
    assert with_order == replace(without, nbytes=without.nbytes + 4 * case.foreground.size)


def test_a_mixed_tile_costs_both_regions() -> None:
    checkerboard = np.arange(8)[None] % 2 == 0
    whole, split = (
        attention_work(case, heads=1, width=4, fg_tokens=5, bg_tokens=5, q_bg=False, itemsize=2)
        for case in (regions("foreground", batch=1, tokens=8), Regions(checkerboard, ~checkerboard, 4))
    )
    assert split.matrix_flops == 2 * whole.matrix_flops


class Number:
    """Counts the operations it takes part in."""

    operations = 0

    def operated(self, other: object = None) -> "Number":
        Number.operations += 1
        return Number()

    __add__ = __mul__ = __sub__ = operated

    def clamped(self) -> "Number":
        Number.operations += 2
        return Number()


def formula(slots: int, *, noise: bool, past: int, input_written: bool) -> None:
    """The step of one number, as ``kernels/README.md`` writes it down."""
    c, u0, u1, x, g = (Number() for _ in range(5))
    first, second = (lambda: u0 + g * (c - u0)), (lambda: u1 + g * (c - u1))
    guided = {1: lambda: c, 2: first, 3: lambda: g * (first() + second())}[slots]()
    x0 = (g * x + g * guided).clamped()
    x = g * x + g * x0 + g * guided
    for _ in range(past + noise):
        x = x + g * Number()
    if input_written:
        g * x


@pytest.mark.parametrize("input_written", [False, True], ids=["state only", "input"])
@pytest.mark.parametrize("noise", [False, True], ids=["deterministic", "noise"])
@pytest.mark.parametrize("past", [0, 1, 2])
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_sampler_work_is_what_a_walk_counts(slots: int, past: int, noise: bool, input_written: bool) -> None:
    n, itemsize = 7, 2
    moved = []
    for _ in range(n):
        moved += [4, 4]  # x in and out
        moved += [itemsize] * slots
        moved += [4] * noise
        moved += [4] * past
        if past:
            moved += [4]
        if input_written:
            moved += [itemsize] * slots
    Number.operations = 0
    formula(slots, noise=noise, past=past, input_written=input_written)
    found = sampler_work(n, slots=slots, itemsize=itemsize, noise=noise, past=past, input_written=input_written)
    assert found == Work(0, n * Number.operations, sum(moved), 1)


OPTIONS = [
    {},
    {"sums": True},
    {"upsample": True},
    {"upsample": True, "residual": True, "return_input": True},
    {"residual": True, "sums": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")
@pytest.mark.parametrize("channels", [(6,), (4, 2)], ids=["one", "concat"])
def test_group_norm_work_is_what_a_walk_counts(channels: tuple[int, ...], options: dict[str, bool]) -> None:
    batch, height, width, itemsize = 2, 6, 4, 2
    launches = [] if options.get("sums") else [set()]
    for launch in (*launches, apply := set()):
        for b, c, y, x in product(range(batch), range(sum(channels)), range(height), range(width)):
            scale = 2 if options.get("upsample") and c < channels[0] else 1
            launch.add(("in", b, c, y // scale, x // scale))
            if options.get("residual"):
                launch.add(("residual", b, c, y, x))
            if launch is apply:
                launch.add(("out", b, c, y, x))
                if options.get("return_input"):
                    launch.add(("dense", b, c, y, x))
    found = group_norm_work(batch=batch, channels=channels, pixels=height * width, itemsize=itemsize, **options)
    assert found.nbytes == itemsize * sum(len(launch) for launch in (*launches, apply))
    assert found.launches == len(launches) + 1
    assert found.vector_flops > 0


def operations_of_statistics(channels: tuple[int, ...], **options: bool) -> int:
    """What is saved where the sums are given; of 24 pixels."""
    with_sums, without = (
        group_norm_work(batch=1, channels=channels, pixels=24, itemsize=2, sums=sums, **options).vector_flops
        for sums in (True, False)
    )
    return without - with_sums


def test_the_statistics_of_an_upsampled_image_alone_are_those_of_the_small_one() -> None:
    assert operations_of_statistics((6,)) == 3 * 6 * 24
    assert operations_of_statistics((6,), upsample=True) == 3 * 6 * 6
    assert operations_of_statistics((6,), upsample=True, residual=True) == 3 * 6 * 24
    assert operations_of_statistics((4, 2), upsample=True) == 3 * 6 * 24


def test_silu_costs_operations_but_no_bytes() -> None:
    with_silu, without = (
        group_norm_work(batch=1, channels=(8,), pixels=4, itemsize=2, silu=silu) for silu in (True, False)
    )
    assert with_silu.nbytes == without.nbytes
    assert with_silu.vector_flops > without.vector_flops


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("normalised", [0, 3])
def test_convolution_work_is_what_a_walk_counts(normalised: int, residual: bool) -> None:
    shape = ConvolutionShape(2, 5, 4, 3, 7, (3, 2), 2, (1, 0, 1, 1))
    moved, products, norms = set(), 0, 0
    pixels = product(range(shape.batch), range(shape.out_height), range(shape.out_width))
    for b, i, j in pixels:
        for k in range(shape.filters):
            moved.add(("out", b, i, j, k))
            if residual:
                moved.add(("residual", b, i, j, k))
        for r, s, c in product(range(3), range(2), range(shape.channels)):
            y, x = 2 * i + r - 1, 2 * j + s
            norms += normalised
            if 0 <= y < 5 and x < 4:
                moved.add(("in", b, y, x, c))
            for k in range(shape.filters):
                moved.add(("weight", k, r, s, c))
                products += 1
    found = convolution_work(shape, itemsize=2, residual=residual, normalised=normalised)
    outs = sum(place[0] == "out" for place in moved)
    assert found == Work(2 * products, 6 * norms + outs * (1 + residual), 2 * len(moved), 1)
