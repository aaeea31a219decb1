"""What every system computes: one step and one whole image of the same drawing, with the same noise."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from saishiki.export.drawings import draw_pairs
from saishiki.models.animediffusion.family import LoadedAnimeDiffusion
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.manifest import Precision
from saishiki.runtime.noise import Noise, draw_noise
from saishiki.runtime.parity import psnr_db, relative_error
from saishiki.runtime.samplers import ddim_table
from saishiki.runtime.schedule import DDIMSchedule, DiffusionSchedule, ddim_schedule
from saishiki.runtime.signature import Array

STEP, IMAGE = "step", "image"
SUBJECTS = (STEP, IMAGE)
ETA = 1.0


@dataclass(frozen=True)
class System:
    """One way to compute it. Each call returns an array or a torch tensor, (1, 3, H, W).

    ``step`` is one call of the network, without the sampler; ``image`` is the whole loop. ``device`` is where torch's
    stream runs it, ``cpu`` for all whose results are back in host memory when the call returns.
    """

    step: Callable[[], object]
    image: Callable[[], object]
    device: str = "cpu"

    def run(self, subject: str) -> Callable[[], object]:
        """The call that computes a subject."""
        return self.step if subject == STEP else self.image


@dataclass(frozen=True)
class Scene:
    """A drawing of ``size_px`` by ``size_px``, the model, and its bundle."""

    model: LoadedAnimeDiffusion
    bundle: Bundle
    size_px: int
    steps: int

    @cached_property
    def schedule(self) -> DDIMSchedule:
        """DDIM with eta 1, as published."""
        return ddim_schedule(DiffusionSchedule(dict(self.model.schedule)), steps=self.steps, eta=ETA)

    @cached_property
    def solver(self) -> Array:
        """The same as a table, (S, 13)."""
        return ddim_table(self.schedule)

    @cached_property
    def pictures(self) -> tuple[Array, Array]:
        """Sketch (1, 1, H, W) and reference (1, 3, H, W)."""
        sketch, reference = draw_pairs(1, self.size_px, self.size_px, seed=0)
        return sketch.numpy(), reference.numpy()

    @cached_property
    def condition(self) -> Array:
        """(1, 4, H, W): sketch, then reference."""
        return np.concatenate(self.pictures, axis=1)

    @cached_property
    def noise(self) -> Noise:
        """Start and steps, of seed 0."""
        return draw_noise([0], (3, self.size_px, self.size_px), steps=self.steps)

    @property
    def step_noise(self) -> Array:
        """(S, 1, 3, H, W)."""
        assert self.noise.steps is not None
        return self.noise.steps


@dataclass(frozen=True)
class Budget:
    """What a system's outputs may differ from the published ones: those of the bundle's certificate."""

    step_error: float
    image_psnr_db: float

    @classmethod
    def of(cls, bundle: Bundle, precision: Precision) -> "Budget":
        """The narrowest budgets that the certificate states for a precision; raises ``ValueError`` without any."""
        certificate = bundle.manifest.certificate
        errors = [row.budget for row in certificate.rows if (row.module, row.precision) == ("denoiser", precision)]
        psnrs = [image.least_psnr_db for image in certificate.images if image.precision == precision]
        if not errors or not psnrs:
            raise ValueError(f"{bundle.path}: its certificate states no budget for {precision}; export it again")
        return cls(min(errors), max(psnrs))

    def judge(self, subject: str, got: Array, published: Array) -> dict[str, float | bool]:
        """Error or PSNR, what is allowed, and whether it is red; NaN is."""
        if subject == STEP:
            error = relative_error(got, published)
            return {"error": error, "budget": self.step_error, "red": not error <= self.step_error}
        psnr = psnr_db(got.clip(-1, 1), published.clip(-1, 1)) if got.shape == published.shape else float("nan")
        return {"psnr_db": psnr, "least_psnr_db": self.image_psnr_db, "red": not psnr >= self.image_psnr_db}
