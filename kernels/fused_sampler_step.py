"""A denoising step's arithmetic behind the network, fused into one pass over x: guidance, x0, solver, next input.

Row k of the (S, 13) fp32 table of :mod:`saishiki.runtime.samplers.tables` holds the coefficients::

    guided = c, or u1 + guidance_1 * (c - u1), or the mean of that and u2 + guidance_2 * (c - u2)
    x0     = clamp(x0_from_x * x + x0_from_prediction * guided, clamp_low, clamp_high)
    x'     = x * x + x0 * x0 + prediction * guided + x0_1 * (x0 before) + x0_2 * (x0 before that) + noise * z

x becomes x', x0 goes into the history, and ``next_input * x'`` into every slot of the next model input. That covers
DDIM, Euler, Euler ancestral, DPM++ 2M, 2M SDE and 3M SDE, for eps and v: a solver is a table. A term whose coefficient
is 0 is left out and its operand is not read. A NaN stays a NaN: clamping must not hide it.

Layout: contiguous; x, noise and history in fp32, prediction and model input in fp32, fp16 or bf16; arithmetic in fp32.
The prediction and the model input hold G slots of the whole batch one behind the other: c, u1, u2. Every number is
read or written once, in one launch, and nothing but k differs between two steps, so a loop of launches can be recorded
into a CUDA graph.

Source: the solvers' own, in :mod:`saishiki.runtime.samplers`; guidance as published for ColorizeDiffusion
(arXiv 2401.01456).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from saishiki.kernels.checks import FLOATS, INTERPRETED, check_tensor
from saishiki.kernels.registration import register_op
from saishiki.kernels.rounding import rounded
from saishiki.kernels.variant import Variant
from saishiki.runtime.samplers.tables import COLUMNS, table_step

BLOCK = 512
MAX_SLOTS = 3
MAX_HISTORY = 2


def fused_sampler_step_reference(
    x: Tensor,
    prediction: Tensor,
    table: Tensor,
    k: int,
    *,
    noise: Tensor | None = None,
    history: Tensor | None = None,
    model_input: Tensor | None = None,
) -> None:
    """Step k in place, at the dtype of x; the arguments are those of :func:`fused_sampler_step`."""
    absent = torch.full_like(x, float("nan"))
    x0_1, x0_2 = absent, absent
    if history is not None:
        x0_1 = history[(k - 1) % len(history)]
        x0_2 = history[k % 2] if len(history) == MAX_HISTORY else absent
    row = table[k].tolist()
    noise = absent if noise is None else noise
    result, x0 = table_step(x, prediction.to(x.dtype), row, noise=noise, x0_1=x0_1, x0_2=x0_2)
    x.copy_(result)
    if history is not None:
        history[k % len(history)] = x0
    if model_input is not None and len(x):
        model_input.copy_((row[-1] * x).repeat(len(model_input) // len(x), 1, 1, 1))


@triton.jit
def _term(coefficient, operand):  # type: ignore[no-untyped-def]
    """Their product; 0 where the coefficient is, whatever the operand."""
    return tl.where(coefficient != 0.0, coefficient * operand, 0.0)


@triton.jit
def _optional_term(coefficient, ptrs, offsets, n, is_there):  # type: ignore[no-untyped-def]
    """The same of an operand in memory, which is read only where it counts: NaN where it does and is not there."""
    numbers = tl.where((coefficient != 0.0) & is_there, n, 0)
    return _term(coefficient, tl.load(ptrs, mask=offsets < numbers, other=float("nan")))


# No value of these may make a kernel of its own.
@triton.jit(do_not_specialize=["k", "noises", "history_slots", "input_slots"])  # type: ignore[untyped-decorator]
def _fused_sampler_step_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    prediction_ptr,
    table_ptr,
    noise_ptr,
    history_ptr,
    model_input_ptr,
    k,
    n,
    noises,
    history_slots,
    input_slots,
    SLOTS: tl.constexpr,  # noqa: N803
    IN_FP32: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    row = table_ptr + k.to(tl.int64) * 13
    x0_1_coefficient = tl.load(row + 9)
    x0_2_coefficient = tl.load(row + 10)
    noise_coefficient = tl.load(row + 11)

    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = offsets < n
    x = tl.load(x_ptr + offsets, mask=inside)
    guided = tl.load(prediction_ptr + offsets, mask=inside).to(tl.float32)
    if SLOTS > 1:
        other = tl.load(prediction_ptr + n + offsets, mask=inside).to(tl.float32)
        first = other + tl.load(row) * (guided - other)
        if SLOTS > 2:
            other = tl.load(prediction_ptr + 2 * n + offsets, mask=inside).to(tl.float32)
            first = 0.5 * (first + (other + tl.load(row + 1) * (guided - other)))
        guided = first

    x0 = tl.load(row + 2) * x + tl.load(row + 3) * guided
    x0 = tl.clamp(x0, tl.load(row + 4), tl.load(row + 5), propagate_nan=tl.PropagateNan.ALL)

    out = _term(tl.load(row + 6), x) + _term(tl.load(row + 7), x0) + _term(tl.load(row + 8), guided)
    # What is asked for and not there is NaN, so that it shows. The older x0 lies where this step's will.
    kept = tl.maximum(history_slots, 1)
    before = history_ptr + ((k + kept - 1) % kept).to(tl.int64) * n + offsets
    now = history_ptr + (k % kept).to(tl.int64) * n + offsets
    out += _optional_term(x0_1_coefficient, before, offsets, n, history_slots > 0)
    out += _optional_term(x0_2_coefficient, now, offsets, n, history_slots > 1)
    out += _optional_term(noise_coefficient, noise_ptr + offsets, offsets, n, noises > 0)

    tl.store(x_ptr + offsets, out, mask=inside)
    tl.store(now, x0, mask=offsets < tl.where(history_slots > 0, n, 0))
    model_input = rounded(tl.load(row + 12) * out, model_input_ptr.dtype.element_ty, IN_FP32)
    for slot in tl.static_range(SLOTS):
        tl.store(model_input_ptr + slot * n + offsets, model_input, mask=offsets < tl.where(input_slots > slot, n, 0))


def fused_sampler_step(
    x: Tensor,
    prediction: Tensor,
    table: Tensor,
    k: int,
    *,
    noise: Tensor | None = None,
    history: Tensor | None = None,
    model_input: Tensor | None = None,
) -> None:
    """Step k of a solver, in place: x becomes x of the next step.

    Where row k of the table asks for noise or for an earlier x0 and there is none, x becomes NaN: a look at the row
    would stop the device. :func:`saishiki.runtime.samplers.needs_noise` and ``history_slots`` tell what a table needs.

    Args:
        x: (B, C, H, W) fp32; written.
        prediction: (G * B, C, H, W) in fp32, fp16 or bf16: G slots, 1 to 3, of the network's output.
        table: (S, 13) fp32, as :mod:`saishiki.runtime.samplers.tables` makes them, on the device of x.
        k: the step, 0 to S - 1.
        noise: (B, C, H, W) fp32, of this step.
        history: (R, B, C, H, W) fp32, R 1 or 2; written. It keeps the x0 of the last R steps, step k's at k mod R, for
            solvers that look back; its content before the first step does not matter.
        model_input: (G * B, C, H, W) in fp32, fp16 or bf16; written. It lies apart from all other tensors.

    Raises ``TypeError`` for other dtypes, ``ValueError`` for other shapes, strides, devices or steps, and
    ``NotImplementedError`` where a gradient would be needed.
    """
    _check(x, prediction, table, k)
    for name, tensor, shape, dtypes in (
        ("noise", noise, x.shape, (torch.float32,)),
        ("model_input", model_input, prediction.shape, FLOATS),
    ):
        if tensor is not None:
            check_tensor(name, tensor, shape, dtypes, x.device)
    if history is not None:
        if history.ndim == 0 or not 1 <= len(history) <= MAX_HISTORY:
            raise ValueError(f"expected a history of 1 to {MAX_HISTORY} slots, got {tuple(history.shape)}")
        check_tensor("history", history, (len(history), *x.shape), (torch.float32,), x.device)
    _check_no_gradient(x, prediction, table, noise, history, model_input)
    _op(x, prediction, table, k, noise, history, model_input)


def _run(
    x: Tensor,
    prediction: Tensor,
    table: Tensor,
    k: int,
    noise: Tensor | None,
    history: Tensor | None,
    model_input: Tensor | None,
) -> None:
    n = x.numel()
    if not n:
        return
    slots = len(prediction) // len(x)
    # What is absent is never touched; a tensor of the same kind stands in for its address.
    _fused_sampler_step_kernel[(triton.cdiv(n, BLOCK),)](
        x,
        prediction,
        table,
        x if noise is None else noise,
        x if history is None else history,
        prediction if model_input is None else model_input,
        k,
        n,
        noises=int(noise is not None),
        history_slots=0 if history is None else len(history),
        input_slots=0 if model_input is None else slots,
        SLOTS=slots,
        IN_FP32=INTERPRETED and model_input is not None and model_input.dtype == torch.bfloat16,
        BLOCK=BLOCK,
    )


def _fake(
    x: Tensor,
    prediction: Tensor,
    table: Tensor,
    k: int,
    noise: Tensor | None,
    history: Tensor | None,
    model_input: Tensor | None,
) -> None:
    return None


_op = register_op("fused_sampler_step", _run, _fake, mutates=("x", "history", "model_input"))


def _check(x: Tensor, prediction: Tensor, table: Tensor, k: int) -> None:
    if x.ndim != 4:
        raise ValueError(f"expected x (B, C, H, W), got {tuple(x.shape)}")
    check_tensor("x", x, x.shape, (torch.float32,), x.device)
    slots = len(prediction) // len(x) if prediction.ndim == 4 and len(x) else 1
    if not 1 <= slots <= MAX_SLOTS or tuple(prediction.shape) != (slots * len(x), *x.shape[1:]):
        raise ValueError(
            f"expected a prediction of 1 to {MAX_SLOTS} times {tuple(x.shape)} along the batch, "
            f"got {tuple(prediction.shape)}"
        )
    check_tensor("prediction", prediction, prediction.shape, FLOATS, x.device)
    if table.ndim != 2 or table.shape[1] != len(COLUMNS):
        raise ValueError(f"expected a table (S, {len(COLUMNS)}), got {tuple(table.shape)}")
    check_tensor("table", table, table.shape, (torch.float32,), x.device)
    if not 0 <= k < len(table):
        raise ValueError(f"expected a step k from 0 to {len(table) - 1}, got {k}")


def _check_no_gradient(*tensors: Tensor | None) -> None:
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise NotImplementedError(
            "fused_sampler_step has no gradient: it is made for inference; call it under torch.inference_mode(), "
            "or fused_sampler_step_reference"
        )


def _variant(slots: int, dtype: str) -> Variant:
    model, state = ("prediction_ptr", "model_input_ptr"), ("x_ptr", "table_ptr", "noise_ptr", "history_ptr")
    types = {**dict.fromkeys(model, f"*{dtype}"), **dict.fromkeys(state, "*fp32"), "n": "i64"}
    run_time = [name for name in _fused_sampler_step_kernel.arg_names if name.islower()]
    return Variant(
        name=f"fused_sampler_step_g{slots}_{dtype}",
        kernel=_fused_sampler_step_kernel,
        signature={name: types.get(name, "i32") for name in run_time},
        constexprs={"SLOTS": slots, "IN_FP32": False, "BLOCK": BLOCK},
        aligned=(*model, *state, "n"),
        grid=((("n",), BLOCK),),
        max_registers=48,
    )


VARIANTS: tuple[Variant, ...] = tuple(
    _variant(slots, dtype) for slots in range(1, MAX_SLOTS + 1) for dtype in ("fp32", "fp16", "bf16")
)
"""Without noise, history or model input, a launch passes 0 for their address and for their number of slots."""
