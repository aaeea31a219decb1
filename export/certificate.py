"""The parity certificate: what the PyTorch reference computes in fp32, and how far an export may be from it.

Every module is probed at every corner of every profile, and a whole run is recorded with every step's x. Budgets come
from the reference itself: an fp16 graph may be twice as far from fp32 as rounding every tensor to fp16 takes the
reference.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saishiki.export.drawings import draw_pairs
from saishiki.export.precision import RoundedToHalf, islands_of
from saishiki.models.family import Family, LoadedModel
from saishiki.runtime.manifest import ImageParity, ParityRow, Precision
from saishiki.runtime.parity import psnr_db, relative_error
from saishiki.runtime.signature import Array, Profile, Sizes, multiples_of, profiles_for

FP32_BUDGET = 2e-5
FP16_FLOOR = 1e-4
FP16_FACTOR = 2.0
LEAST_PSNR_DB: Mapping[Precision, float] = {"fp32": 80.0, "fp16": 45.0}
PSNR_SLACK_DB = 6.0

FULL_RUN_PX = 128 * 128
SHORT_RUN_STEPS = 2
REDUCED_PX = 64 * 64
SEED = 20240107


@dataclass(frozen=True)
class Expectation:
    """The reference's results as tensors to store, and the rows that are still to be measured."""

    vectors: Mapping[str, Array]
    rows: tuple[ParityRow, ...]
    images: tuple[ImageParity, ...]


def record_reference(
    model: LoadedModel,
    family: Family,
    profiles: tuple[Profile, ...],
    kept_fp32: tuple[str, ...],
    *,
    thorough: bool,
) -> Expectation:
    """Runs the reference on probes and keeps what it computes.

    Args:
        kept_fp32: the modules and submodules that fp16 graphs compute in fp32.
        thorough: record runs of all steps at any size; else pictures above 128x128 get two steps, and all of them at a
            reduced size that only the ONNX graphs can run.
    """
    vectors: dict[str, Array] = {}
    rows: list[ParityRow] = []
    for name in model.modules:
        for corner in _corners(model, name, profiles):
            rows += _record_module(model, name, corner, kept_fp32, vectors)
    images: list[ImageParity] = []
    for sizes in _run_sizes(profiles):
        images += _record_runs(model, family, sizes, kept_fp32, vectors, thorough=thorough)
    return Expectation(vectors, tuple(rows), tuple(images))


def _corners(model: LoadedModel, name: str, profiles: tuple[Profile, ...]) -> Iterator[Sizes]:
    unique = {
        tuple(corner.items()): corner
        for profile in profiles_for(model.signatures[name], profiles)
        for corner in profile.corners()
    }
    yield from unique.values()


def _record_module(
    model: LoadedModel, name: str, sizes: Sizes, kept_fp32: tuple[str, ...], vectors: dict[str, Array]
) -> list[ParityRow]:
    module, signature = model.modules[name], model.signatures[name]
    picture = sizes.get("batch", 1), sizes.get("height", 8), sizes.get("width", 8)
    key = f"{name}/" + "x".join(str(sizes[symbol]) for symbol in signature.symbols)
    with torch.inference_mode():
        inputs = model.probe(name, sizes, *draw_pairs(*picture, seed=SEED))
        output = module(**inputs)
    (spec,) = signature.outputs
    vectors |= {f"{key}/in/{input_name}": tensor.numpy() for input_name, tensor in inputs.items()}
    vectors[f"{key}/out/{spec.name}"] = output.numpy()

    precisions: tuple[Precision, ...] = ("fp32",) if name in kept_fp32 else ("fp32", "fp16")
    rounded = _rounded_error(module, islands_of(name, kept_fp32), inputs, output) if "fp16" in precisions else 0.0
    return [
        ParityRow(
            module=name,
            precision=precision,
            vectors=key,
            sizes=dict(sizes),
            error=math.inf,
            max_abs=math.inf,
            budget=_budget(precision, rounded),
            reference_fp16=rounded,
            passed=False,
        )
        for precision in precisions
    ]


def _rounded_error(module: nn.Module, islands: tuple[str, ...], inputs: Mapping[str, Tensor], output: Tensor) -> float:
    with torch.inference_mode():
        rounded = RoundedToHalf(module, islands)(**inputs)
    return relative_error(rounded.numpy(), output.numpy())


def _budget(precision: Precision, rounded: float) -> float:
    if precision == "fp32":
        return FP32_BUDGET
    # Where rounding alone takes the reference out of fp16's range there is nothing to measure by.
    return FP16_FACTOR * rounded + FP16_FLOOR if math.isfinite(rounded) else FP16_FLOOR


@dataclass(frozen=True)
class _Yardstick:
    """How far rounding to fp16 takes the reference itself: the relative error of every step, the image's PSNR in dB."""

    errors: tuple[float, ...]
    psnr_db: float


def _run_sizes(profiles: tuple[Profile, ...]) -> tuple[Sizes, ...]:
    """The sizes of the runs to record: every profile's tuned size, in its smallest batch."""
    all_sizes = [{**p.opt, "batch": p.min["batch"]} for p in map(_of_pictures, profiles)]
    return tuple(sizes for i, sizes in enumerate(all_sizes) if sizes not in all_sizes[:i])


def _of_pictures(profile: Profile) -> Profile:
    return profile.restricted_to(("batch", "height", "width"))


def _record_runs(
    model: LoadedModel,
    family: Family,
    sizes: Sizes,
    kept_fp32: tuple[str, ...],
    vectors: dict[str, Array],
    *,
    thorough: bool,
) -> list[ImageParity]:
    steps = family.sampler.steps
    if thorough or sizes["height"] * sizes["width"] <= FULL_RUN_PX:
        run = _record_run(model, family, sizes, steps, vectors)
        return _image_rows(run, ("fp32", "fp16"), _yardstick(model, run, kept_fp32))
    run = _record_run(model, family, _reduced(sizes, multiples_of(model.signatures.values())), steps, vectors)
    yardstick = _yardstick(model, run, kept_fp32)
    short = _record_run(model, family, sizes, SHORT_RUN_STEPS, vectors)
    # The worst step of the long run stands for the steps of the short one: rounding a whole run again costs too much.
    worst = _Yardstick((max(yardstick.errors),) * SHORT_RUN_STEPS, yardstick.psnr_db)
    return [*_image_rows(run, ("fp32", "fp16"), yardstick), *_image_rows(short, ("fp16",), worst)]


def _reduced(sizes: Sizes, multiples: Mapping[str, int]) -> dict[str, int]:
    scale = math.sqrt(REDUCED_PX / (sizes["height"] * sizes["width"]))

    def shrink(symbol: str) -> int:
        multiple = multiples.get(symbol, 1)
        return max(1, round(sizes[symbol] * scale / multiple)) * multiple

    return {"batch": 1, "height": shrink("height"), "width": shrink("width")}


@dataclass(frozen=True)
class _Run:
    """A recorded run: its inputs, every step's x, and the name of its tensors in the parity file."""

    key: str
    sizes: Sizes
    eta: float
    inputs: Mapping[str, Tensor]
    states: Tensor


def _record_run(model: LoadedModel, family: Family, sizes: Sizes, steps: int, vectors: dict[str, Array]) -> _Run:
    batch, height, width = sizes["batch"], sizes["height"], sizes["width"]
    sketch, reference = draw_pairs(batch, height, width, seed=SEED + 1)
    generator = torch.Generator().manual_seed(SEED)
    start = torch.randn(reference.shape, generator=generator)
    noise = torch.randn((steps, *reference.shape), generator=generator)
    inputs = {"sketch": sketch, "reference": reference, "start": start, "noise": noise}
    with torch.inference_mode():
        states = model.sample(sketch, reference, start, noise, eta=family.sampler.eta)
    run = _Run(f"run/{batch}x{height}x{width}/{steps}", sizes, family.sampler.eta, inputs, states)
    vectors |= {f"{run.key}/{name}": tensor.numpy() for name, tensor in (*inputs.items(), ("states", states))}
    return run


def _yardstick(model: LoadedModel, run: _Run, kept_fp32: tuple[str, ...]) -> _Yardstick:
    with torch.inference_mode():
        rounded = RoundedToHalf(model.modules["denoiser"], islands_of("denoiser", kept_fp32))
        states = model.sample(*run.inputs.values(), eta=run.eta, denoiser=rounded)
    errors = [relative_error(got.numpy(), want.numpy()) for got, want in zip(states, run.states, strict=True)]
    return _Yardstick(tuple(errors), psnr_db(_clipped(states), _clipped(run.states)))


def _clipped(states: Tensor) -> Array:
    return states[-1].clamp(-1, 1).numpy()


def _image_rows(run: _Run, precisions: tuple[Precision, ...], yardstick: _Yardstick) -> list[ImageParity]:
    return [
        ImageParity(
            precision=precision,
            vectors=run.key,
            sizes=dict(run.sizes),
            eta=run.eta,
            step_errors=(),
            step_budgets=tuple(_budget(precision, error) for error in yardstick.errors),
            psnr_db=math.nan,
            least_psnr_db=_least_psnr(precision, yardstick.psnr_db),
            max_abs_levels=255,
            passed=False,
        )
        for precision in precisions
    ]


def _least_psnr(precision: Precision, rounded: float) -> float:
    fp32 = LEAST_PSNR_DB["fp32"]
    if precision == "fp32" or not math.isfinite(rounded):
        return LEAST_PSNR_DB[precision]
    return min(fp32, max(LEAST_PSNR_DB["fp16"], rounded - PSNR_SLACK_DB))
