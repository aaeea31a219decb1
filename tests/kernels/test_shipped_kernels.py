"""Every op launched as the runtime does it, by the cubins' index: cubins on a GPU, else their source interpreted."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.kernels import build  # noqa: E402
from saishiki.kernels.checks import INTERPRETED  # noqa: E402
from saishiki.runtime.backends.convolution_kernel import (  # noqa: E402
    Images,
    Norm,
    Operands,
    convolution_launch,
    from_images_launch,
    matmul_launch,
    to_image_launch,
)
from saishiki.runtime.backends.convolution_tiles import NORM_TARGETS, ConvolutionShape  # noqa: E402
from saishiki.runtime.backends.cubins import find_cubin, grid_of, packed_arguments, read_cubin_index  # noqa: E402
from saishiki.runtime.backends.cuda import CudaDevice  # noqa: E402
from saishiki.runtime.backends.device import Memory  # noqa: E402
from saishiki.runtime.backends.launches import launches_of  # noqa: E402
from saishiki.runtime.plan.extents import Tensors  # noqa: E402
from saishiki.runtime.samplers import COLUMNS, table_step  # noqa: E402
from saishiki.runtime.signature import Array  # noqa: E402
from tests.kernels.plan_cases import PLAN_CASES, PlanCase  # noqa: E402
from tests.runtime.plan.running import extents  # noqa: E402

HALF, SINGLE = np.float16, np.float32
DTYPES = {"*fp16": torch.float16, "*fp32": torch.float32, "*i32": torch.int32}


class InterpretedDevice:
    """Runs in Triton's interpreter what a launch would run on an sm89, from the index's own words."""

    target = "sm89"

    def __init__(self) -> None:
        self._memory: dict[int, Any] = {}

    def allocate(self, nbytes: int) -> Memory:
        content = torch.zeros(nbytes, dtype=torch.uint8)
        self._memory[content.data_ptr()] = content
        return Memory(content.data_ptr(), nbytes, content)

    def upload(self, memory: Memory, array: Array) -> None:
        memory.owner.numpy()[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def download(self, memory: Memory, array: Array) -> None:
        array.reshape(-1).view(np.uint8)[:] = memory.owner.numpy()

    def launch(self, name: str, **arguments: int | float) -> None:
        entry = find_cubin(read_cubin_index(), name, self.target)
        grid = grid_of(entry, arguments)
        assert np.prod(grid) > 1, "one block would not show a wrong grid"
        packed = packed_arguments(entry, arguments)
        passed = {arg: self._passed(kind, value) for (arg, kind), value in zip(entry.args, packed, strict=True)}
        hidden = {arg for arg, kind in entry.args if kind == "null"}
        shown = {arg: value for arg, value in passed.items() if arg not in hidden}
        build.VARIANTS[name].kernel[grid](**shown, **entry.constexprs)

    def _passed(self, kind: str, value: Any) -> Any:
        if not kind.startswith("*"):
            return value.item() if isinstance(value, np.generic) else value
        if not value:
            return None
        start = max(address for address in self._memory if address <= value)
        return self._memory[start][value - start :].view(DTYPES[kind])

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Result:
    """What a launch gave, and what it should."""

    got: Array
    expected: Array


def draw(*shape: int, seed: int, dtype: Any = HALF) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def put(device: Any, **arrays: Array) -> dict[str, int]:
    """Copies arrays to the device: addresses, as ``<name>_ptr``. The memory lives as long as the device."""
    held = {name: device.allocate(array.nbytes) for name, array in arrays.items()}
    for name, array in arrays.items():
        device.upload(held[name], array)
    device.__dict__.setdefault("held", []).append(held)
    return {f"{name}_ptr": memory.address for name, memory in held.items()}


def fetch(device: Any, name: str, like: Array) -> Array:
    (memory,) = (held[name] for held in device.held if name in held)
    out = np.empty_like(like)
    device.download(memory, out)
    return out


def nothing(*shape: int, dtype: Any = HALF) -> Array:
    return np.full(shape, np.nan, dtype)


def launch_masked_split_cross_attention(device: Any, *, merge_scale: float) -> Result:
    batch, tokens, keys, heads, head_dim, fg_tokens = 3, 200, 130, 2, 64, 61
    width = heads * head_dim
    q, q_bg = draw(batch, tokens, width, seed=0), draw(batch, tokens, width, seed=1)
    kv = draw(batch, keys, 2 * width, seed=2)
    k, v = kv[..., :width], kv[..., width:]
    mask = np.random.default_rng(4).random((batch, tokens)).astype(SINGLE)
    mask[0, :128] = 1.0
    order = np.argsort(mask, axis=1).astype(np.int32)
    out = nothing(*q.shape)
    at = put(device, q=q, q_bg=q_bg, kv=kv, mask=mask, order=order, share=np.array([merge_scale], SINGLE), out=out)
    kv_ptr, share_ptr = at.pop("kv_ptr"), at.pop("share_ptr")
    device.launch(
        "masked_split_cross_attention_merge_d64_fp16" if merge_scale else "masked_split_cross_attention_d64_fp16",
        **at,
        k_ptr=kv_ptr,
        v_ptr=kv_ptr + width * kv.itemsize,
        kv_index_ptr=0,
        selection=0,
        threshold=0.5,
        fg_scale=0.7,
        bg_scale=1.4,
        merge_scale=share_ptr if merge_scale else 0.0,
        batch=batch,
        tokens=tokens,
        keys=keys,
        fg_tokens=fg_tokens,
        heads=heads,
        q_batch_units=tokens * width // 8,
        q_token_units=width // 8,
        kv_batch_units=keys * 2 * width // 8,
        kv_token_units=2 * width // 8,
    )

    def attend(queries: Array, span: slice) -> Array:
        def split(array: Array) -> Array:
            return array.astype(np.float64).reshape(*array.shape[:2], heads, head_dim).swapaxes(1, 2)

        scores = split(queries) @ split(k[:, span]).swapaxes(2, 3) / head_dim**0.5
        p = np.exp(scores - scores.max(-1, keepdims=True))
        return (p / p.sum(-1, keepdims=True) @ split(v[:, span])).swapaxes(1, 2).reshape(q.shape)

    fg = 0.7 * attend(q, slice(0, fg_tokens))
    bg = 1.4 * attend(q_bg if merge_scale else q, slice(fg_tokens, keys))
    fg = fg * (1 - merge_scale) + bg * merge_scale
    return Result(fetch(device, "out", out), np.where((mask > 0.5)[..., None], fg, bg))


def launch_region_order(device: Any) -> Result:
    """Whether each place is right: an order has no error that is small."""
    batch, tokens = 3, 2100
    mask = np.random.default_rng(4).random((batch, tokens)).astype(SINGLE)
    at = put(device, mask=mask, out=np.full((batch, tokens), -1, np.int32))
    device.launch("region_order", **at, selection=0, threshold=0.7, batch=batch, tokens=tokens)
    expected = np.argsort(mask > 0.7, axis=1, kind="stable")
    got = fetch(device, "out", expected.astype(np.int32))
    return Result((got == expected).astype(SINGLE), np.ones_like(mask))


def launch_split_projection(device: Any) -> Result:
    batch, tokens, width, out_width = 2, 100, 160, 96
    rows = batch * tokens
    x, w_fg, w_bg = draw(rows, width, seed=0), draw(out_width, width, seed=1), draw(out_width, width, seed=2)
    mask = np.random.default_rng(3).random((batch, tokens)).astype(SINGLE)
    order = np.argsort(mask, axis=1).astype(np.int32)
    out = nothing(rows, out_width)
    device.launch(
        "split_projection_fp16",
        **put(device, x=x, w_fg=w_fg, w_bg=w_bg, mask=mask, order=order, out=out),
        selection=1,
        threshold=0.5,
        rows=rows,
        tokens=tokens,
        width=width,
        out_width=out_width,
        x_batch_units=tokens * width // 8,
        x_token_units=width // 8,
    )
    x64, w_fg, w_bg = x.astype(np.float64), w_fg.astype(np.float64), w_bg.astype(np.float64)
    return Result(fetch(device, "out", out), np.where((mask < 0.5).reshape(rows, 1), x64 @ w_bg.T, x64 @ w_fg.T))


def launch_fused_sampler_step(device: Any) -> Result:
    n, k, slots = 4 * 32 * 32, 1, 3
    x, noise, history = (draw(rows, n, seed=seed, dtype=SINGLE) for seed, rows in enumerate((1, 1, 2)))
    prediction, model_input = draw(slots, n, seed=3), nothing(slots, n)
    table = draw(2, len(COLUMNS), seed=4, dtype=SINGLE)
    table[:, 4:6] = -1, 1
    device.launch(
        "fused_sampler_step_g3_fp16",
        **put(device, x=x, prediction=prediction, table=table, noise=noise, history=history, model_input=model_input),
        k=k,
        n=n,
        noises=1,
        history_slots=2,
        input_slots=slots,
    )
    wide = [array.astype(np.float64) for array in (x, prediction, table[k], noise, history)]
    after, x0 = table_step(wide[0], wide[1], wide[2], noise=wide[3], x0_1=wide[4][:1], x0_2=wide[4][1:])
    expected = np.concatenate([after, wide[4][:1], x0, *[table[k, -1] * after] * slots])
    fetched = (
        fetch(device, name, array) for name, array in (("x", x), ("history", history), ("model_input", model_input))
    )
    return Result(np.concatenate([array.astype(SINGLE) for array in fetched]), expected)


def launch_group_norm_silu(device: Any) -> Result:
    batch, height, width, channels, groups, chunks, block_c = 2, 24, 24, 64, 32, 3, 32
    pixels = height * width
    x = draw(batch, pixels, channels, seed=0) + HALF(30)
    weight, bias = draw(channels, seed=1, dtype=SINGLE), draw(channels, seed=2, dtype=SINGLE)
    blocks = channels // block_c
    out = nothing(*x.shape)
    pointers = put(
        device,
        x=x,
        weight=weight,
        bias=bias,
        partials=nothing(batch * blocks * chunks * 2 * block_c, dtype=SINGLE),
        tickets=np.zeros(batch * blocks, np.int32),
        statistics=nothing(batch * groups * 2, dtype=SINGLE),
        out=out,
    )
    absent = {"concat_ptr": 0, "residual_ptr": 0, "embedding_ptr": 0}
    sizes = {
        "batch": batch,
        "pixels": pixels,
        "channels": channels,
        "channels_x": channels,
        "width": width,
        "groups": groups,
        "channel_blocks": blocks,
        "eps": 1e-5,
    }
    statistics = {name: pointers[name] for name in ("x_ptr", "partials_ptr", "tickets_ptr", "statistics_ptr")}
    apply = {name: pointers[name] for name in ("x_ptr", "statistics_ptr", "weight_ptr", "bias_ptr", "out_ptr")}
    entry = find_cubin(read_cubin_index(), "group_norm_silu_apply_nhwc_fp16", device.target)
    apply_blocks = {
        "channel_blocks": -(-channels // int(entry.constexprs["BLOCK_C"])),
        "pixel_blocks": -(-pixels // int(entry.constexprs["BLOCK_P"])),
    }
    # Twice: the first launch must leave the tickets as it found them.
    for _ in range(2):
        device.launch(
            "group_norm_silu_statistics_nhwc_fp16",
            **absent,
            **statistics,
            **sizes,
            slices=1,
            chunks=chunks,
        )
        device.launch("group_norm_silu_apply_nhwc_fp16", **absent, **apply, **(sizes | apply_blocks), input_ptr=0)
    grouped = x.astype(np.float64).reshape(batch, pixels, groups, -1)
    mean, variance = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    y = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * weight + bias
    return Result(fetch(device, "out", out), y / (1 + np.exp(-y)))


def launch_convolution(device: Any, *, norm: bool) -> Result:
    """Down by two as a VAE does it, with a bias per image and a residual."""
    if norm and device.target not in NORM_TARGETS:
        pytest.skip(f"a convolution with a norm in front is not compiled for {device.target}")
    shape = ConvolutionShape(2, 25, 22, 72, 72, (3, 3), 2, (0, 0, 1, 1))
    groups, out_shape = 8, (2, shape.out_height, shape.out_width, 72)
    x, w = draw(2, 25, 22, 72, seed=0), draw(72, 3, 3, 72, seed=1) / HALF(25)
    bias, residual, out = draw(2, 72, seed=2), draw(*out_shape, seed=3), nothing(*out_shape)
    wide = x.astype(np.float64)
    grouped = wide.reshape(2, -1, groups, 9)
    mean, rstd = grouped.mean((1, 3)), 1 / grouped.std((1, 3))
    statistics = np.stack([mean, rstd], -1).astype(SINGLE)
    weight, shift = draw(72, seed=4, dtype=SINGLE), draw(72, seed=5, dtype=SINGLE)
    at = put(device, x=x, w=w, bias=bias, residual=residual, out=out, statistics=statistics, weight=weight, shift=shift)
    vectors = (at[f"{name}_ptr"] for name in ("statistics", "weight", "shift"))
    operands = Operands(
        **{name: at[f"{name}_ptr"] for name in ("x", "w", "bias", "out", "residual")},
        bias_rows=2,
        bias_stride=72,
        norm=Norm(*vectors, groups=groups, silu=True) if norm else None,
    )
    name, arguments = convolution_launch(shape, operands, sms=128)
    device.launch(name, **arguments)
    if norm:
        mean, rstd = (np.repeat(value, 9, 1)[:, None, None] for value in (mean, rstd))
        wide = (wide - mean) * rstd * weight + shift
        wide = wide / (1 + np.exp(-wide))
    expected = convolved(wide, w, shape) + residual + bias[:, None, None]
    return Result(fetch(device, "out", out), expected)


def convolved(x: Array, w: Array, shape: ConvolutionShape) -> Array:
    """NHWC in fp64, tap by tap."""
    top, left, bottom, right = shape.padding
    x = np.pad(x.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    y = np.zeros((shape.batch, shape.out_height, shape.out_width, shape.filters))
    for r, s in np.ndindex(*shape.taps):
        seen = x[:, r :: shape.stride, s :: shape.stride][:, : shape.out_height, : shape.out_width]
        y += seen @ w[:, r, s].astype(np.float64).T
    return y


def launch_matmul(device: Any, *, to_fp32: bool) -> Result:
    """Of rows that are parts of longer ones, as are those of the residual and of the result; in fp32 without a bias."""
    rows, width, out_width = 150, 72, 136
    x, residual = draw(rows, 3, width, seed=0), draw(rows, out_width + 8, seed=1)
    w, bias = draw(out_width, width, seed=2) / HALF(8), draw(out_width, seed=3)
    out = nothing(rows, out_width + 16, dtype=SINGLE if to_fp32 else HALF)
    at = put(device, x=x, residual=residual, w=w, bias=bias, out=out)
    operands = Operands(
        x=at["x_ptr"] + width * x.itemsize,
        w=at["w_ptr"],
        bias=0 if to_fp32 else at["bias_ptr"],
        out=at["out_ptr"],
        residual=at["residual_ptr"],
        x_stride=3 * width,
        out_stride=out_width + 16,
        residual_stride=out_width + 8,
    )
    name, arguments = matmul_launch(rows, width, out_width, operands, sms=128, to_fp32=to_fp32)
    device.launch(name, **arguments)
    got = fetch(device, "out", out)
    assert np.isnan(got[:, out_width:]).all()
    wide = x[:, 1].astype(np.float64) @ w.astype(np.float64).T
    return Result(got[:, :out_width], wide + residual[:, :out_width] + (0 if to_fp32 else bias))


def launch_convolution_from_images(device: Any) -> Result:
    shape = ConvolutionShape(2, 13, 11, 8, 72)
    x, x2 = draw(2, 3, 13, 11, seed=0, dtype=SINGLE), draw(2, 4, 13, 11, seed=1, dtype=SINGLE)
    w, bias, out = draw(72, 3, 3, 8, seed=2), draw(72, seed=3), nothing(2, 13, 11, 72)
    residual = draw(2, 13, 11, 72, seed=4)
    w[..., 7] = 0
    at = put(device, x=x, x2=x2, w=w, bias=bias, residual=residual, out=out)
    images = Images(at["x_ptr"], 3, at["x2_ptr"], 4)
    operands = {name: at[f"{name}_ptr"] for name in ("w", "bias", "residual", "out")}
    name, arguments = from_images_launch(shape, images, **operands)
    device.launch(name, **arguments)
    both = np.concatenate([x, x2, np.zeros_like(x[:, :1])], 1).astype(HALF).transpose(0, 2, 3, 1)
    return Result(fetch(device, "out", out), convolved(both, w, shape) + residual + bias)


def launch_convolution_to_image(device: Any) -> Result:
    shape = ConvolutionShape(2, 13, 11, 72, 3)
    x, w, bias = draw(2, 13, 11, 72, seed=0), draw(3, 3, 3, 72, seed=1) / HALF(25), draw(3, seed=2)
    out = nothing(2, 3, 13, 11, dtype=SINGLE)
    at = put(device, x=x, w=w, bias=bias, out=out)
    operands = Operands(*(at[f"{name}_ptr"] for name in ("x", "w", "bias", "out")))
    name, arguments = to_image_launch(shape, operands)
    device.launch(name, **arguments)
    return Result(fetch(device, "out", out), (convolved(x, w, shape) + bias).transpose(0, 3, 1, 2))


def launch_plan_case(device: Any, *, case: PlanCase) -> Result:
    """An operation as a plan has it; its reference computes in fp32 and is not rounded here."""
    tensors = {**case.arrays, "out": nothing(*case.shape)}
    at = put(device, **tensors)
    known = extents(**{name: (array.shape, str(array.dtype)) for name, array in tensors.items()})
    for launch in launches_of(case.op, known, lambda name: at[f"{name}_ptr"], sms=128):
        device.launch(launch.kernel, **launch.arguments)
    expected = nothing(*case.shape, dtype=np.float64)
    case.op.compute(Tensors({}, {**case.arrays, "out": expected}))
    return Result(fetch(device, "out", tensors["out"]), expected)


LAUNCHES: dict[str, Callable[[Any], Result]] = {
    "masked_split_cross_attention": partial(launch_masked_split_cross_attention, merge_scale=0.0),
    "masked_split_cross_attention_merge": partial(launch_masked_split_cross_attention, merge_scale=0.25),
    "region_order": launch_region_order,
    "split_projection": launch_split_projection,
    "fused_sampler_step": launch_fused_sampler_step,
    "group_norm_silu": launch_group_norm_silu,
    "convolution": partial(launch_convolution, norm=False),
    "convolution_norm": partial(launch_convolution, norm=True),
    "convolution_as_matmul": partial(launch_matmul, to_fp32=False),
    "convolution_to_fp32": partial(launch_matmul, to_fp32=True),
    "convolution_from_images": launch_convolution_from_images,
    "convolution_to_image": launch_convolution_to_image,
    **{name: partial(launch_plan_case, case=case) for name, case in PLAN_CASES.items()},
}


def assert_right(result: Result) -> None:
    """A few roundings to fp16 of numbers as large as the largest."""
    error = np.abs(result.got.astype(np.float64) - result.expected)
    assert error.max() <= 4 * 2.0**-11 * np.abs(result.expected).max()


def test_every_op_is_launched() -> None:
    assert all(any(name.startswith(op) for op in build.OPS) for name in LAUNCHES)
    assert build.OPS.keys() <= LAUNCHES.keys()


@pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter, which is not used where there is a GPU")
@pytest.mark.parametrize("launch", LAUNCHES.values(), ids=LAUNCHES)
def test_launch_is_right(launch: Callable[[Any], Result]) -> None:
    assert_right(launch(InterpretedDevice()))


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
@pytest.mark.parametrize("launch", LAUNCHES.values(), ids=LAUNCHES)
def test_cubin_is_right_on_the_gpu(launch: Callable[[Any], Result]) -> None:
    device = CudaDevice(0)
    result = launch(device)
    device.close()
    assert_right(result)
