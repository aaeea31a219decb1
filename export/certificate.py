"""The parity certificate: what the PyTorch reference computes in fp32, and how far an export may be from it.

Every module is probed at every corner of every profile, and a whole run is recorded with every step's x. Budgets come
from the reference itself: an fp16 graph may be twice as far from fp32 as rounding every tensor to fp16 takes the
reference.
"""

import math
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from itertools import chain, product

import numpy as np
import torch
from torch import Tensor, nn

from saishiki.export.drawings import draw_pairs
from saishiki.export.graphs import precisions_of
from saishiki.export.precision import RoundedToHalf, islands_of
from saishiki.export.progress import Observer, Silent
from saishiki.models.family import Family, LoadedModel, RecordedRun
from saishiki.runtime.manifest import ImageParity, ParityRow, Precision
from saishiki.runtime.parity import psnr_db, relative_error
from saishiki.runtime.signature import Array, Profile, Sizes, multiples_of, profiles_for

FP32_FACTOR = 16.0 * 2.0**-13
"""Of the error that rounding to fp16 makes, whose unit is 2^13 times that of fp32."""
FP16_FLOOR = 1e-4
FP16_FACTOR = 2.0
PSNR_SLACK_DB = 6.0

FULL_RUN_PX = 128 * 128
"""Pictures above it are large: what takes long is done for smaller ones."""
SHORT_RUN_STEPS = 2
REDUCED_PX = 64 * 64
SMALL_PX = 64
"""Side of the pictures for modules that take none."""
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
    asked: Collection[Precision],
    thorough: bool,
    vectors: MutableMapping[str, Array] | None = None,
    observer: Observer | None = None,
) -> Expectation:
    """Runs the reference on probes and keeps what it computes.

    Args:
        kept_fp32: the modules and submodules that fp16 graphs compute in fp32.
        asked: the precisions that graphs are written in.
        thorough: record runs of all steps at any size, and what rounding does there; else pictures above 128x128 get
            two steps, and both are done at a reduced size that only the ONNX graphs can run.
        vectors: where the tensors go, which may be more than the memory holds; None takes a dictionary.
    """
    vectors, observer = {} if vectors is None else vectors, observer or Silent()
    all_sizes = _run_sizes(profiles)
    rows, total = [], len(model.modules) + len(model.runs) * len(all_sizes)
    for done, name in enumerate(model.modules):
        observer.part(name, done, total)
        errors = _RoundingErrors(model, name, kept_fp32, thorough=thorough)
        precisions = precisions_of(name, asked, kept_fp32)
        for corner in _corners(model, name, profiles):
            rows += _record_module(model, name, corner, errors, vectors, precisions, budget=family.fp32_budget)
    records = _Records(model, family, kept_fp32, vectors)
    runs = _Runs(records, thorough=thorough)
    for done, (name, sizes) in enumerate(product(model.runs, all_sizes), start=len(model.modules)):
        observer.part(f"recording {name}", done, total)
        runs.add(name, sizes)
    images = tuple(chain.from_iterable(runs.rows.values()))
    return Expectation(vectors, tuple(rows), tuple(image for image in images if image.precision in asked))


def _corners(model: LoadedModel, name: str, profiles: tuple[Profile, ...]) -> Iterator[Sizes]:
    unique = {
        tuple(corner.items()): corner
        for profile in profiles_for(model.signatures[name], profiles)
        for corner in profile.corners()
    }
    yield from unique.values()


@dataclass(frozen=True)
class _RoundingErrors:
    """How far rounding to fp16 takes a module from its own fp32 outputs, as relative errors.

    They hardly depend on the size of the pictures, and rounding costs more than computing: unless ``thorough``, large
    pictures are measured by small ones.
    """

    model: LoadedModel
    name: str
    kept_fp32: tuple[str, ...]
    thorough: bool = field(kw_only=True)
    _known: dict[tuple[tuple[str, int], ...], float] = field(default_factory=dict)

    def at(self, sizes: Sizes, inputs: Mapping[str, Tensor], outputs: tuple[Tensor, ...]) -> float:
        """The largest error of any output at these sizes; inputs and outputs: those at the sizes."""
        if self.thorough or not _is_large(sizes):
            return self._of(inputs, outputs)
        small = {**sizes, **_reduced(sizes, multiples_of(self.model.signatures.values()))}
        small = {symbol: small[symbol] for symbol in sizes}
        key = tuple(small.items())
        if key not in self._known:
            self._known[key] = self._of(*_probe(self.model, self.name, small))
        return self._known[key]

    def _of(self, inputs: Mapping[str, Tensor], outputs: tuple[Tensor, ...]) -> float:
        return _rounded_error(self.model.modules[self.name], islands_of(self.name, self.kept_fp32), inputs, outputs)


def _is_large(sizes: Sizes) -> bool:
    return sizes.get("height", 1) * sizes.get("width", 1) > FULL_RUN_PX


def _probe(model: LoadedModel, name: str, sizes: Sizes) -> tuple[Mapping[str, Tensor], tuple[Tensor, ...]]:
    """A module's inputs at these sizes, and what the reference makes of them."""
    picture = sizes.get("batch", 1), sizes.get("height", SMALL_PX), sizes.get("width", SMALL_PX)
    with torch.inference_mode():
        inputs = model.probe(name, sizes, *draw_pairs(*picture, seed=SEED))
        return inputs, _outputs_of(model.modules[name], inputs)


def _record_module(
    model: LoadedModel,
    name: str,
    sizes: Sizes,
    errors: _RoundingErrors,
    vectors: MutableMapping[str, Array],
    precisions: tuple[Precision, ...],
    *,
    budget: float,
) -> list[ParityRow]:
    signature = model.signatures[name]
    key = f"{name}/" + "x".join(str(sizes[symbol]) for symbol in signature.symbols)
    inputs, outputs = _probe(model, name, sizes)
    vectors.update({f"{key}/in/{input_name}": tensor.numpy() for input_name, tensor in inputs.items()})
    for spec, output in zip(signature.outputs, outputs, strict=True):
        vectors[f"{key}/out/{spec.name}"] = output.numpy()
    rounded = errors.at(sizes, inputs, outputs) if "fp16" in precisions else 0.0
    return [
        ParityRow(
            module=name,
            precision=precision,
            vectors=key,
            sizes=dict(sizes),
            error=math.inf,
            max_abs=math.inf,
            budget=_budget(precision, rounded, fp32=budget),
            reference_fp16=rounded,
            passed=False,
        )
        for precision in precisions
    ]


def _outputs_of(module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """A module's outputs in the order of its signature; a module with one output gives the tensor itself."""
    output = module(**inputs)
    return (output,) if isinstance(output, Tensor) else tuple(output)


def _rounded_error(
    module: nn.Module, islands: tuple[str, ...], inputs: Mapping[str, Tensor], outputs: tuple[Tensor, ...]
) -> float:
    """The largest relative error that rounding to fp16 makes in any output; NaN where one overflows."""
    with torch.inference_mode():
        rounded = _outputs_of(RoundedToHalf(module, islands), inputs)
    pairs = zip(rounded, outputs, strict=True)
    # numpy's max keeps a NaN, which Python's may lose.
    return float(np.max([relative_error(got.numpy(), want.numpy()) for got, want in pairs]))


def _budget(precision: Precision, rounded: float, *, fp32: float) -> float:
    if precision == "fp32":
        # Where rounding to fp16 shows that errors grow, those of fp32 do too, in proportion.
        return max(fp32, FP32_FACTOR * rounded) if math.isfinite(rounded) else fp32
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


def _reduced(sizes: Sizes, multiples: Mapping[str, int]) -> dict[str, int]:
    scale = math.sqrt(REDUCED_PX / (sizes["height"] * sizes["width"]))

    def shrink(symbol: str) -> int:
        multiple = multiples.get(symbol, 1)
        # At least two: norms over a single position at the deepest level would be of next to nothing.
        return max(2, round(sizes[symbol] * scale / multiple)) * multiple

    return {"batch": 1, "height": shrink("height"), "width": shrink("width")}


@dataclass(frozen=True)
class _Run:
    """A recorded run of ``steps`` steps, and what its tensors in the parity file begin with."""

    name: str
    key: str
    sizes: Sizes
    steps: int
    recorded: RecordedRun


@dataclass(frozen=True)
class _Records:
    """Records runs of one model, and adds their tensors to the vectors."""

    model: LoadedModel
    family: Family
    kept_fp32: tuple[str, ...]
    vectors: MutableMapping[str, Array]

    @staticmethod
    def key(name: str, sizes: Sizes, steps: int) -> str:
        """What a run's tensors begin with."""
        return f"{name}/{sizes['batch']}x{sizes['height']}x{sizes['width']}/{steps}"

    def run(self, name: str, sizes: Sizes, steps: int) -> _Run:
        """A run of the reference."""
        shape = sizes["batch"], sizes["height"], sizes["width"]
        with torch.inference_mode():
            recorded = self.model.record(name, *draw_pairs(*shape, seed=SEED + 1), steps=steps)
        key = self.key(name, sizes, steps)
        tensors = {f"inputs/{input_name}": tensor for input_name, tensor in recorded.inputs.items()}
        tensors |= {"states": recorded.states, "image": recorded.image}
        self.vectors.update({f"{key}/{tensor_name}": tensor.numpy() for tensor_name, tensor in tensors.items()})
        return _Run(name, key, sizes, steps, recorded)

    def yardstick(self, run: _Run) -> _Yardstick:
        """The same run with rounded modules."""
        shape = run.sizes["batch"], run.sizes["height"], run.sizes["width"]
        with torch.inference_mode():
            rounded = self.model.record(
                run.name, *draw_pairs(*shape, seed=SEED + 1), steps=run.steps, substitute=self._rounded
            )
        states = zip(rounded.states, run.recorded.states, strict=True)
        errors = tuple(relative_error(got.numpy(), want.numpy()) for got, want in states)
        return _Yardstick(errors, psnr_db(_clipped(rounded.image), _clipped(run.recorded.image)))

    def _rounded(self, name: str, module: nn.Module) -> nn.Module:
        return module if name in self.kept_fp32 else RoundedToHalf(module, islands_of(name, self.kept_fp32))

    def rows(
        self, run: _Run, yardstick: _Yardstick, precisions: tuple[Precision, ...] = ("fp32", "fp16")
    ) -> list[ImageParity]:
        """What is still to be measured of the run."""
        return [self._row(run, yardstick, precision) for precision in precisions]

    def _row(self, run: _Run, yardstick: _Yardstick, precision: Precision) -> ImageParity:
        return ImageParity(
            precision=precision,
            vectors=run.key,
            sizes=dict(run.sizes),
            settings=run.recorded.settings,
            step_errors=(),
            step_budgets=tuple(_budget(precision, e, fp32=self.family.fp32_budget) for e in yardstick.errors),
            psnr_db=math.nan,
            least_psnr_db=_least_psnr(precision, yardstick.psnr_db, self.family.least_psnr_db),
            max_abs_levels=255,
            passed=False,
        )


@dataclass(frozen=True)
class _Runs:
    """Every run of a model: at each size, or at a reduced one and for fewer steps at the size itself."""

    records: _Records
    thorough: bool = field(kw_only=True)
    rows: dict[str, list[ImageParity]] = field(default_factory=dict)
    _yardsticks: dict[str, _Yardstick] = field(default_factory=dict)

    def add(self, name: str, sizes: Sizes) -> None:
        """Records a run at these sizes."""
        family = self.records.family
        steps = family.recorded_steps or family.sampler.steps
        is_small = self.thorough or not _is_large(sizes)
        whole = sizes if is_small else _reduced(sizes, multiples_of(self.records.model.signatures.values()))
        key = self.records.key(name, whole, steps)
        # Sizes may come down to the same reduced one.
        if key not in self.rows:
            run = self.records.run(name, whole, steps)
            self._yardsticks[key] = self.records.yardstick(run)
            self.rows[key] = self.records.rows(run, self._yardsticks[key])
        if not is_small:
            short = self.records.run(name, sizes, min(SHORT_RUN_STEPS, steps))
            # The worst step of the long run stands for the steps of the short one: rounding another costs too much.
            long = self._yardsticks[key]
            worst = _Yardstick((max(long.errors),) * short.steps, long.psnr_db)
            self.rows[short.key] = self.records.rows(short, worst, ("fp16",))


def _clipped(image: Tensor) -> Array:
    return image.clamp(-1, 1).numpy()


def _least_psnr(precision: Precision, rounded: float, least: Mapping[Precision, float]) -> float:
    if precision == "fp32" or not math.isfinite(rounded):
        return least[precision]
    return min(least["fp32"], max(least["fp16"], rounded - PSNR_SLACK_DB))
