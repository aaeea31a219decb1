"""Whole runs: what a pipeline replays them from, every step's x, and what rounded modules make of the same run."""

import math
from collections.abc import MutableMapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from saishiki.export.certificate.budgets import budget_of, least_psnr
from saishiki.export.certificate.sizes import is_large, reduced
from saishiki.export.drawings import draw_pairs
from saishiki.export.precision import RoundedToHalf, islands_of
from saishiki.models.family import Family, LoadedModel, RecordedRun
from saishiki.runtime.manifest import ImageParity, Precision
from saishiki.runtime.parity import psnr_db, relative_error
from saishiki.runtime.signature import Array, Sizes, multiples_of

SHORT_RUN_STEPS = 2
SEED = 20240108


@dataclass(frozen=True)
class _Yardstick:
    """How far rounding to fp16 takes the reference itself: the relative error of every step, the image's PSNR in dB."""

    errors: tuple[float, ...]
    psnr_db: float


@dataclass(frozen=True)
class _Run:
    """A recorded run of ``steps`` steps, and what its tensors in the parity file begin with."""

    name: str
    key: str
    sizes: Sizes
    steps: int
    recorded: RecordedRun


@dataclass(frozen=True)
class Records:
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
            recorded = self.model.record(name, *draw_pairs(*shape, seed=SEED), steps=steps)
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
                run.name, *draw_pairs(*shape, seed=SEED), steps=run.steps, substitute=self._rounded
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
            step_budgets=tuple(budget_of(precision, e, fp32=self.family.fp32_budget) for e in yardstick.errors),
            psnr_db=math.nan,
            least_psnr_db=least_psnr(precision, yardstick.psnr_db, self.family.least_psnr_db),
            max_abs_levels=255,
            passed=False,
        )


@dataclass(frozen=True)
class Runs:
    """Every run of a model: at each size, or at a reduced one and for fewer steps at the size itself."""

    records: Records
    thorough: bool = field(kw_only=True)
    rows: dict[str, list[ImageParity]] = field(default_factory=dict)
    _yardsticks: dict[str, _Yardstick] = field(default_factory=dict)

    def add(self, name: str, sizes: Sizes) -> None:
        """Records a run at these sizes."""
        family = self.records.family
        steps = family.recorded_steps or family.sampler.steps
        is_small = self.thorough or not is_large(sizes)
        whole = sizes if is_small else reduced(sizes, multiples_of(self.records.model.signatures.values()))
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
