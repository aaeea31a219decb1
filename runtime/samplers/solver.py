"""Solvers by the names of ColorizeDiffusion's user interface: which samplers and schedulers there are."""

import operator
from collections.abc import Iterable

import numpy as np

from saishiki.runtime.samplers.diffusers_samplers import DIFFUSERS_SOLVERS
from saishiki.runtime.samplers.k_samplers import FAST, K_SAMPLERS, k_solver
from saishiki.runtime.samplers.parameterisation import Parameterisation
from saishiki.runtime.samplers.protocol import Float32, Solver
from saishiki.runtime.samplers.sigmas import SPACINGS

__all__ = ["SAMPLERS", "SCHEDULERS", "Solver", "known_sampler", "known_scheduler", "solver_for"]

SAMPLERS: tuple[str, ...] = (*DIFFUSERS_SOLVERS, *K_SAMPLERS, FAST)
"""Every sampler, as published; ``DPM adaptive`` is left out, whose number of evaluations depends on the picture."""
SCHEDULERS: tuple[str, ...] = ("Automatic", *SPACINGS)
"""Every way to space the noise levels; ``Automatic`` is each sampler's own."""


def solver_for(sampler: str, *, scheduler: str, steps: int, alphas_cumprod: Float32, how: Parameterisation) -> Solver:
    """A sampler on the schedule of a run.

    Where a sampler has one schedule alone (``diffuser_ddim``, ``diffuser_pndm``, ``DPM fast``), the scheduler plays no
    part, and ``diffuser_dpm`` and ``diffuser_lms`` know none but ``Automatic`` and ``Karras``, as published.

    Args:
        sampler: of :data:`SAMPLERS`, in any case; ``dpmpp-2m`` is taken for ``DPM++ 2M``.
        scheduler: of :data:`SCHEDULERS`, in any case.
        steps: of the run; ``DPM fast`` evaluates the network that often, in fewer steps.
        alphas_cumprod: (T,) fp32 as stored in the checkpoint.
        how: what the network predicts, and guidance.

    Raises ``ValueError`` for a name that is not known, listing all, and for steps that the schedule does not have;
    ``TypeError`` for steps that are no whole number.
    """
    sampler, scheduler, steps = known_sampler(sampler), known_scheduler(scheduler), operator.index(steps)
    gammas = np.asarray(alphas_cumprod, np.float32)
    most = len(gammas) - 2
    if not 1 <= steps <= most:
        raise ValueError(f"steps must be between 1 and {most}, got {steps}")
    if sampler in DIFFUSERS_SOLVERS:
        return DIFFUSERS_SOLVERS[sampler](scheduler, steps, gammas, how)
    return k_solver(sampler, scheduler, steps, gammas, how)


def known_sampler(name: str) -> str:
    """The sampler as published; raises ``ValueError`` for one that is not known, listing all."""
    return _known("sampler", name, SAMPLERS)


def known_scheduler(name: str) -> str:
    """The scheduler as published; raises ``ValueError`` for one that is not known, listing all."""
    return _known("scheduler", name, SCHEDULERS)


def _known(what: str, name: str, names: Iterable[str]) -> str:
    found = {_spelling(known): known for known in names}
    if _spelling(name) not in found:
        raise ValueError(f"unknown {what} {name!r}; expected one of {', '.join(found.values())}")
    return found[_spelling(name)]


def _spelling(name: str) -> str:
    """Letters and digits alone: ``dpmpp2m`` of ``DPM++ 2M`` and of ``dpmpp-2m``."""
    plain = str(name).lower().replace("++", "pp").replace("ancestral", "a")
    return "".join(letter for letter in plain if letter.isalnum())
