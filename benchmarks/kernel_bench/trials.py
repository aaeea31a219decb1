"""For each case: the op, the same in fp64 and in plain torch, and what it is up against.

The published form of split cross-attention is two attentions of every token and a choice, which is what the op's own
reference does; the other ops' published form is their formula in torch operators. Each is tried as it is and under
``torch.compile``.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, singledispatch
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from roofline import Work
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernel_bench.cases import AttentionCase, GroupNormCase, KernelCase, ProjectionCase, SamplerCase
from kernel_bench.convolution_case import ConvolutionCase
from kernel_bench.small_cases import OPERANDS, PlainAttentionCase, RegionOrderCase, SmallCase
from saishiki.kernels.attention import attention, attention_reference
from saishiki.kernels.average_pool import average_pool, average_pool_reference
from saishiki.kernels.convolution import InputNorm, convolution, convolution_reference
from saishiki.kernels.fused_sampler_step import fused_sampler_step, fused_sampler_step_reference
from saishiki.kernels.group_norm_silu import group_norm_silu, group_norm_silu_reference
from saishiki.kernels.layer_norm import layer_norm, layer_norm_reference
from saishiki.kernels.masked_split_cross_attention import (
    masked_split_cross_attention,
    masked_split_cross_attention_reference,
    token_order,
)
from saishiki.kernels.mean import mean, mean_reference
from saishiki.kernels.pointwise import pointwise, pointwise_reference
from saishiki.kernels.region_order import region_order, region_order_reference
from saishiki.kernels.split_projection import split_projection, split_projection_reference
from saishiki.runtime.samplers import (
    Parameterisation,
    ddim_gammas_table,
    dpmpp_2m_sde_table,
    dpmpp_2m_table,
    table_step,
)

Tensors = tuple[Tensor, ...]
Run = Callable[[], Any]

SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
COPY = "copy of as many bytes"
STEP = 1  # of the sampler: the first has no past
STEPS = 4


@dataclass(frozen=True)
class Rival:
    """Another way; ``same`` where it computes what the op computes, and so must pass the op's check."""

    run: Run
    same: bool


@dataclass(frozen=True)
class Trial:
    """One case on one device.

    Args:
        run: the op, on the same memory every time; what is timed.
        outputs: what the op computes from fresh copies.
        truth: the reference in fp64.
        plain: torch at the op's dtype, whose error is the op's budget.
    """

    work: Work
    run: Run
    outputs: Callable[[], Tensors]
    truth: Callable[[], Tensors]
    plain: Callable[[], Tensors]
    rivals: Mapping[str, Rival]


@dataclass(frozen=True)
class Place:
    """Where trials run; in a dry run ``torch.compile`` traces but compiles nothing."""

    device: str
    dry_run: bool

    def draw(self, *shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        """Random normal numbers."""
        return torch.randn(shape, device=self.device).to(dtype)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function under ``torch.compile``, for one set of shapes."""
        compiled: Callable[..., Any] = torch.compile(
            function, fullgraph=True, dynamic=False, backend="eager" if self.dry_run else "inductor"
        )
        return compiled


def _copy(work: Work, place: Place) -> dict[str, Rival]:
    """A copy that reads and writes as many bytes as the op does."""
    source, target = (torch.zeros(work.nbytes // 2, dtype=torch.uint8, device=place.device) for _ in range(2))
    return {COPY: Rival(partial(target.copy_, source), same=False)}


@singledispatch
def trial_of(case: KernelCase, place: Place) -> Trial:
    """The trial of a case, with random numbers of seed 0."""
    raise TypeError(f"no trial is known for {type(case).__name__}")


def _fresh(place: Place) -> None:
    torch.manual_seed(0)
    # Each case has shapes of its own, and the compiler gives a function up after eight.
    torch._dynamo.reset()


@trial_of.register
def _attention(case: AttentionCase, place: Place) -> Trial:
    _fresh(place)
    width = case.heads * case.head_dim
    q, k, v = (place.draw(case.batch, tokens, width) for tokens in (case.tokens, case.keys, case.keys))
    mask = torch.from_numpy(case.foreground).to(place.device, torch.float32)
    settings: Any = {
        "heads": case.heads,
        "selection": "foreground_above",
        "threshold": 0.5,
        "merge_scale": case.merge_scale,
    }
    reference: Any = partial(masked_split_cross_attention_reference, **settings)
    order = token_order(mask) if case.ordered else None
    run = partial(masked_split_cross_attention, q, k, v, mask, order=order, **settings)
    return Trial(
        work=case.work(),
        run=run,
        outputs=lambda: (run(),),
        truth=lambda: (reference(q.double(), k.double(), v.double(), mask),),
        plain=lambda: (reference(q, k, v, mask),),
        rivals={
            "two passes, eager": Rival(partial(reference, q, k, v, mask), same=True),
            "two passes, compiled": Rival(partial(place.compiled(reference), q, k, v, mask), same=True),
            **_plain_attentions(q, k, v, case.heads, case.keys // 2, "one region"),
            **_plain_attentions(q, k, v, case.heads, case.keys, "all keys"),
        },
    )


def _plain_attentions(q: Tensor, k: Tensor, v: Tensor, heads: int, keys: int, label: str) -> dict[str, Rival]:
    """One attention of all tokens over the first keys, by everything that has one."""
    split = [x.unflatten(-1, (heads, -1)) for x in (q, k[:, :keys], v[:, :keys])]  # (B, tokens, heads, D)
    rivals = {
        f"plain, {label}, sdpa {name}": Rival(partial(_sdpa, *(x.transpose(1, 2) for x in split), backend), same=False)
        for name, backend in SDPA.items()
    }
    if importlib.util.find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_func

        rivals[f"plain, {label}, flash_attn"] = Rival(partial(flash_attn_func, *split), same=False)
    return rivals


def _sdpa(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v)


@trial_of.register
def _projection(case: ProjectionCase, place: Place) -> Trial:
    _fresh(place)
    x = place.draw(case.batch, case.tokens, case.channels)
    w_fg, w_bg = (place.draw(case.channels, case.channels) / case.channels**0.5 for _ in range(2))
    mask = torch.from_numpy(case.foreground).to(place.device, torch.float32)
    settings: Any = {"selection": "foreground_above", "threshold": 0.5}
    reference: Any = partial(split_projection_reference, **settings)
    order = token_order(mask) if case.ordered else None
    run = partial(split_projection, x, w_fg, w_bg, mask, order=order, **settings)
    return Trial(
        work=case.work(),
        run=run,
        outputs=lambda: (run(),),
        truth=lambda: (reference(x.double(), w_fg.double(), w_bg.double(), mask),),
        plain=lambda: (reference(x, w_fg, w_bg, mask),),
        rivals={
            "two products, eager": Rival(partial(reference, x, w_fg, w_bg, mask), same=True),
            "two products, compiled": Rival(partial(place.compiled(reference), x, w_fg, w_bg, mask), same=True),
            "one product": Rival(partial(F.linear, x, w_fg), same=False),
        },
    )


def solver_table(case: SamplerCase) -> Any:
    """(STEPS, 13) of the case's solver."""
    how = Parameterisation("v", (3.0, 2.0)[: case.slots - 1], clamp=None if case.past else (-1.0, 1.0))
    if not case.past:
        gammas = np.linspace(0.05, 0.95, STEPS + 1).tolist()
        return ddim_gammas_table(gammas, how, eta=float(case.noise))
    sigmas = [*np.geomspace(10.0, 0.1, STEPS).tolist(), 0.0]
    return (dpmpp_2m_sde_table if case.noise else dpmpp_2m_table)(sigmas, how)


@trial_of.register
def _sampler(case: SamplerCase, place: Place) -> Trial:
    _fresh(place)
    batch, *rest = case.shape
    table = torch.from_numpy(solver_table(case)).to(place.device)
    row = [float(number) for number in table[STEP]]
    x = place.draw(*case.shape, dtype=torch.float32)
    prediction = place.draw(case.slots * batch, *rest)
    noise = place.draw(*case.shape, dtype=torch.float32) if case.noise else None
    history = place.draw(case.past, *case.shape, dtype=torch.float32) if case.past else None
    model_input = torch.empty_like(prediction) if case.input_written else None

    def step(op: Callable[..., None], dtype: torch.dtype) -> Tensors:
        """What a step leaves behind: x, and the history and the model input where there are any."""
        state, past, out, noisy, coefficients = (
            None if tensor is None else tensor.to(dtype, copy=True)
            for tensor in (x, history, model_input, noise, table)
        )
        inputs = prediction.to(dtype) if dtype == torch.float64 else prediction
        out = out if dtype == torch.float64 or out is None else torch.empty_like(prediction)
        op(state, inputs, coefficients, STEP, noise=noisy, history=past, model_input=out)
        return tuple(tensor for tensor in (state, past, out) if tensor is not None)

    def published(x: Tensor, prediction: Tensor) -> Any:
        before = None if history is None else history[0]
        state, x0 = table_step(x, prediction.float(), row, noise=noise, x0_1=before)
        if model_input is None:
            return state, x0
        return state, x0, torch.cat([row[-1] * state] * case.slots).half()

    return Trial(
        work=case.work(),
        run=lambda: fused_sampler_step(
            x, prediction, table, STEP, noise=noise, history=history, model_input=model_input
        ),
        outputs=lambda: step(fused_sampler_step, torch.float32),
        truth=lambda: step(fused_sampler_step_reference, torch.float64),
        plain=lambda: step(fused_sampler_step_reference, torch.float32),
        rivals={
            "torch operators, eager": Rival(lambda: published(x, prediction), same=False),
            "torch operators, compiled": Rival(partial(place.compiled(published), x, prediction), same=False),
            **_copy(case.work(), place),
        },
    )


@trial_of.register
def _group_norm(case: GroupNormCase, place: Place) -> Trial:
    _fresh(place)
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    scales = (2 if case.upsample else 1, 1)  # x alone is small
    tensors = [
        place.draw(case.batch, channels, case.height // scale, case.width // scale).contiguous(memory_format=layout)
        for channels, scale in zip(case.channels, scales, strict=False)
    ]
    x, concat = tensors[0], tensors[1] if len(tensors) > 1 else None
    channels = sum(case.channels)
    weight, bias = place.draw(channels), place.draw(channels)
    embedding = place.draw(case.batch, channels) if case.embedding else None

    settings: Any = {
        "groups": case.groups,
        "eps": case.eps,
        "concat": concat,
        "upsample": case.upsample,
        "embedding": embedding,
        "return_input": case.return_input,
    }
    reference: Any = partial(group_norm_silu_reference, **settings)
    sums = _sums_of(reference(x, weight, bias, return_input=True)[1]) if case.sums else None
    run = partial(group_norm_silu, x, weight, bias, **settings, sums=sums)

    def exact() -> Tensors:
        doubled: Any = {
            name: value.double() if isinstance(value, Tensor) else value for name, value in settings.items()
        }
        return _as_tuple(group_norm_silu_reference(x.double(), weight.double(), bias.double(), **doubled))

    return Trial(
        work=case.work(),
        run=run,
        outputs=lambda: _as_tuple(run()),
        truth=exact,
        plain=lambda: _as_tuple(reference(x, weight, bias)),
        rivals={
            "torch operators, eager": Rival(partial(reference, x, weight, bias), same=True),
            "torch operators, compiled": Rival(partial(place.compiled(reference), x, weight, bias), same=True),
            **_copy(case.work(), place),
        },
    )


@trial_of.register
def _convolution(case: ConvolutionCase, place: Place) -> Trial:
    _fresh(place)
    shape = case.shape
    x = _nhwc(place.draw(case.batch, case.channels, case.height, case.width))
    w = _nhwc(place.draw(case.filters, case.channels, case.taps, case.taps) / (case.taps * case.channels**0.5))
    bias = place.draw(case.batch, case.filters)
    out_shape = (case.batch, case.filters, shape.out_height, shape.out_width)
    residual = _nhwc(place.draw(*out_shape)) if case.residual else None
    norm = _norm_of(x, case.groups, place) if case.norm else None
    settings: Any = {"stride": case.stride, "padding": case.padding, "norm": norm}
    reference: Any = partial(convolution_reference, **settings)

    def exact() -> Tensors:
        wide = None if residual is None else residual.double()
        return (reference(x.double(), w.double(), bias.double(), residual=wide),)

    return Trial(
        work=case.work(),
        run=partial(convolution, x, w, bias, residual=residual, **settings),
        outputs=lambda: (convolution(x, w, bias, residual=residual, **settings),),
        truth=exact,
        plain=lambda: (reference(x, w, bias, residual=residual),),
        rivals={
            "torch operators, eager": Rival(partial(reference, x, w, bias, residual=residual), same=True),
            "torch operators, compiled": Rival(
                partial(place.compiled(reference), x, w, bias, residual=residual), same=True
            ),
            "convolution alone": Rival(partial(F.conv2d, x, w, None, case.stride, case.taps // 2), same=False),
        },
    )


@trial_of.register
def _plain_attention(case: PlainAttentionCase, place: Place) -> Trial:
    _fresh(place)
    shapes = ((case.batch, tokens, case.heads, case.head_dim) for tokens in (case.tokens, case.keys, case.keys))
    q, k, v = (place.draw(*shape).transpose(1, 2) for shape in shapes)
    return Trial(
        work=case.work(),
        run=partial(attention, q, k, v),
        outputs=lambda: (attention(q, k, v),),
        truth=lambda: (attention_reference(q.double(), k.double(), v.double()),),
        plain=lambda: (attention_reference(q, k, v),),
        rivals={f"sdpa {name}": Rival(partial(_sdpa, q, k, v, backend), same=False) for name, backend in SDPA.items()},
    )


@trial_of.register
def _region_order(case: RegionOrderCase, place: Place) -> Trial:
    _fresh(place)
    mask = torch.rand(case.batch, case.tokens, device=place.device)
    settings: Any = {"selection": "foreground_above", "threshold": 0.5}
    run, reference = partial(region_order, mask, **settings), partial(region_order_reference, mask, **settings)
    return Trial(
        work=case.work(),
        run=run,
        outputs=lambda: (run(),),
        truth=lambda: (reference().double(),),
        plain=lambda: (reference(),),
        rivals={
            "sorted by mask": Rival(partial(token_order, mask), same=False),
            "torch operators, eager": Rival(reference, same=True),
        },
    )


@trial_of.register
def _small(case: SmallCase, place: Place) -> Trial:
    _fresh(place)
    given: list[Tensor] = [place.draw(*case.shape) for _ in range(OPERANDS.get(case.function, 1))]
    if case.op == "average_pool":
        given = [_nhwc(given[0])]
    if case.op == "layer_norm":
        given += [place.draw(case.shape[1], dtype=torch.float32) for _ in range(2)]
    out = torch.empty_like(given[0])
    runs: Mapping[str, Run] = {
        "average_pool": lambda: average_pool(*given),
        "mean": lambda: mean(*given),
        "layer_norm": lambda: layer_norm(*given, eps=1e-5),
        "pointwise": lambda: pointwise(case.function, *given, out=out),
    }
    references: Mapping[str, Callable[..., Tensor]] = {
        "average_pool": average_pool_reference,
        "mean": mean_reference,
        "layer_norm": partial(layer_norm_reference, eps=1e-5),
        "pointwise": partial(pointwise_reference, case.function),
    }
    run, reference = runs[case.op], references[case.op]
    return Trial(
        work=case.work(),
        run=run,
        outputs=lambda: (run(),),
        truth=lambda: (reference(*(x.double() for x in given)),),
        plain=lambda: (reference(*given),),
        rivals={
            "torch operators, eager": Rival(partial(reference, *given), same=True),
            "torch operators, compiled": Rival(partial(place.compiled(reference), *given), same=True),
            **_copy(case.work(), place),
        },
    )


def _nhwc(image: Tensor) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last)


def _norm_of(x: Tensor, groups: int, place: Place) -> InputNorm:
    """A norm whose statistics are those of x."""
    numbers = x.float().reshape(x.shape[0], groups, -1)
    statistics = torch.stack((numbers.mean(-1), torch.rsqrt(numbers.var(-1, correction=0) + 1e-5)), -1)
    weight, bias = (place.draw(x.shape[1], dtype=torch.float32) for _ in range(2))
    return InputNorm(statistics.contiguous(), weight, bias)


def _as_tuple(out: Any) -> Tensors:
    return out if isinstance(out, tuple) else (out,)


def _sums_of(u: Tensor) -> Tensor:
    """(B, C, 2) fp32: what a convolution's epilogue would hand over."""
    return torch.stack((u.float().sum((2, 3)), u.float().square().sum((2, 3))), -1)
