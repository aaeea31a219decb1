"""The parity certificate: what the PyTorch reference computes in fp32, and how far an export may be from it.

Every module is probed at every corner of every profile, and a whole run is recorded with every step's x. Budgets come from
the reference itself: an fp16 graph may be twice as far from fp32 as rounding every tensor to fp16 takes the reference.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saishiki.export.drawings import draw_pairs
from saishiki.export.precision import RoundedToHalf
from saishiki.models.family import Family, LoadedModel
from saishiki.runtime.manifest import ImageParity, ParityRow, Precision
from saishiki.runtime.parity import psnr_db, relative_error
from saishiki.runtime.signature import Array, Profile, Sizes, profiles_for

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


def record_reference(model: LoadedModel, family: Family, profiles: tuple[Profile, ...], *, thorough: bool) -> Expectation:
    """Runs the reference on probes and keeps what it computes.

    Args:
        thorough: record runs of all steps at any size; else pictures above 128x128 get two steps, and all of them at a
            reduced size that only the ONNX graphs can run.
    """
    vectors: dict[str, Array] = {}
    rows: list[ParityRow] = []
    for name in model.modules:
        for corner in _corners(model, name, profiles):
            rows += _record_module(model, family, name, corner, vectors)
    images: list[ImageParity] = []
    for sizes, steps, precisions in _runs(model, family, profiles, thorough=thorough):
        images += _record_run(model, family, sizes, steps, precisions, vectors)
    return Expectation(vectors, tuple(rows), tuple(images))


def _corners(model: LoadedModel, name: str, profiles: tuple[Profile, ...]) -> Iterator[Sizes]:
    unique = {
        tuple(corner.items()): corner
        for profile in profiles_for(model.signatures[name], profiles)
        for corner in profile.corners()
    }
    yield from unique.values()


def _record_module(
    model: LoadedModel, family: Family, name: str, sizes: Sizes, vectors: dict[str, Array]
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

    precisions: tuple[Precision, ...] = ("fp32",) if name in family.fp32_modules else ("fp32", "fp16")
    rounded = _rounded_error(module, inputs, output) if "fp16" in precisions else 0.0
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


def _rounded_error(module: nn.Module, inputs: Mapping[str, Tensor], output: Tensor) -> float:
    with torch.inference_mode():
        rounded = RoundedToHalf(module)(**inputs)
    return relative_error(rounded.numpy(), output.numpy())


def _budget(precision: Precision, rounded: float) -> float:
    return FP32_BUDGET if precision == "fp32" else FP16_FACTOR * rounded + FP16_FLOOR


def _runs(
    model: LoadedModel, family: Family, profiles: tuple[Profile, ...], *, thorough: bool
) -> Iterator[tuple[Sizes, int, tuple[Precision, ...]]]:
    """Sizes, steps and precisions of the runs to record."""
    both: tuple[Precision, ...] = ("fp32", "fp16")
    signature = next(signature for signature in model.signatures.values() if "height" in signature.symbols)
    seen: list[Sizes] = []
    for profile in profiles:
        sizes = {"batch": profile.min["batch"], "height": profile.opt["height"], "width": profile.opt["width"]}
        if sizes in seen:
            continue
        seen.append(sizes)
        if thorough or sizes["height"] * sizes["width"] <= FULL_RUN_PX:
            yield sizes, family.sampler.steps, both
        else:
            yield sizes, SHORT_RUN_STEPS, ("fp16",)
            yield _reduced(sizes, signature.multiples), family.sampler.steps, both


def _reduced(sizes: Sizes, multiples: Mapping[str, int]) -> dict[str, int]:
    scale = math.sqrt(REDUCED_PX / (sizes["height"] * sizes["width"]))

    def shrink(symbol: str) -> int:
        multiple = multiples.get(symbol, 1)
        return max(1, round(sizes[symbol] * scale / multiple)) * multiple

    return {"batch": 1, "height": shrink("height"), "width": shrink("width")}


def _record_run(
    model: LoadedModel,
    family: Family,
    sizes: Sizes,
    steps: int,
    precisions: tuple[Precision, ...],
    vectors: dict[str, Array],
) -> list[ImageParity]:
    batch, height, width = sizes["batch"], sizes["height"], sizes["width"]
    eta = family.sampler.eta
    sketch, reference = draw_pairs(batch, height, width, seed=SEED + 1)
    generator = torch.Generator().manual_seed(SEED)
    start = torch.randn(reference.shape, generator=generator)
    noise = torch.randn((steps, *reference.shape), generator=generator)
    key = f"run/{batch}x{height}x{width}/{steps}"
    with torch.inference_mode():
        states = model.sample(sketch, reference, start, noise, eta=eta)
        rounded = RoundedToHalf(model.modules["denoiser"])
        rounded_states = model.sample(sketch, reference, start, noise, eta=eta, denoiser=rounded)
    stored = {"sketch": sketch, "reference": reference, "start": start, "noise": noise, "states": states}
    vectors |= {f"{key}/{name}": tensor.numpy() for name, tensor in stored.items()}
    errors = [relative_error(got.numpy(), want.numpy()) for got, want in zip(rounded_states, states, strict=True)]
    own = psnr_db(rounded_states[-1].clamp(-1, 1).numpy(), states[-1].clamp(-1, 1).numpy())
    return [
        ImageParity(
            precision=precision,
            vectors=key,
            sizes=dict(sizes),
            eta=eta,
            step_errors=(),
            step_budgets=tuple(_budget(precision, error) for error in errors),
            psnr_db=math.nan,
            least_psnr_db=_least_psnr(precision, own),
            max_abs_levels=255,
            passed=False,
        )
        for precision in precisions
    ]


def _least_psnr(precision: Precision, rounded: float) -> float:
    floor = LEAST_PSNR_DB[precision]
    return floor if precision == "fp32" else max(floor, rounded - PSNR_SLACK_DB)
