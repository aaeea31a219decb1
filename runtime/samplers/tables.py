"""Solvers as tables: every one here is linear in x, x0, the prediction, the x0 of two steps before, and the noise.

Row k of an (S, 13) fp32 table says all that step k does, in the order of :data:`COLUMNS`::

    guided = c, or u1 + guidance_1 * (c - u1), or the mean of that and u2 + guidance_2 * (c - u2)
    x0     = clamp(x0_from_x * x + x0_from_prediction * guided, clamp_low, clamp_high)
    x'     = x * x + x0 * x0 + prediction * guided + x0_1 * (x0 before) + x0_2 * (x0 before that) + noise * z
    model input of the next step, in every guidance slot = next_input * x'

where a column's name before an operand is its coefficient. c, u1 and u2 are the slots of the network's output. A term
with the coefficient 0 is left out, whatever its operand holds. So one kernel serves all solvers
(:mod:`saishiki.kernels.fused_sampler_step`), and a step of it depends on the device's memory alone.

Coefficients are computed in fp64 and stored in fp32. A table asks for noise and for earlier x0 where those columns are
not 0: :func:`needs_noise` and :func:`history_slots`.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saishiki.runtime.samplers.ddim import checked_gammas, ddim_sigma
from saishiki.runtime.samplers.k_diffusion import (
    Midpoint,
    ancestral_split,
    checked_sigmas,
    noise_deviation,
    second_order_weight,
)
from saishiki.runtime.samplers.parameterisation import Parameterisation, guide, input_scale
from saishiki.runtime.schedule import DDIMSchedule

COLUMNS = (
    "guidance_1",
    "guidance_2",
    "x0_from_x",
    "x0_from_prediction",
    "clamp_low",
    "clamp_high",
    "x",
    "x0",
    "prediction",
    "x0_1",
    "x0_2",
    "noise",
    "next_input",
)
Table = NDArray[np.float32]
Row = Mapping[str, float]


def ddim_table(schedule: DDIMSchedule) -> Table:
    """(S, 13) of AnimeDiffusion's DDIM: eps without guidance, x0 clamped to [-1, 1], x itself the model's input."""
    signal, noise = schedule.signal_level.astype(np.float64), schedule.noise_level.astype(np.float64)
    columns: dict[str, NDArray[Any]] = {
        "x0_from_x": 1 / signal,
        "x0_from_prediction": -noise / signal,
        "x0": schedule.x0_coefficient,
        "prediction": schedule.eps_coefficient,
        "noise": schedule.sigma,
        "next_input": np.ones(len(schedule)),
    }
    rows = [{name: float(values[k]) for name, values in columns.items()} for k in range(len(schedule))]
    return _table(rows, Parameterisation("eps", clamp=(-1.0, 1.0)))


def ddim_gammas_table(gammas: Sequence[float], how: Parameterisation, *, eta: float = 0.0) -> Table:
    """(S, 13) of :func:`.ddim.sample_ddim_gammas`; x is the model's input. Raises ``ValueError`` for other gammas."""
    rows = []
    for gamma, following in pairwise(checked_gammas(gammas)):
        signal, noise = math.sqrt(gamma), math.sqrt(1 - gamma)
        sigma = ddim_sigma(gamma, following, eta)
        eps = math.sqrt(max(0.0, 1 - following - sigma**2))
        from_x, from_prediction = (noise, signal) if how.prediction == "v" else (0.0, 1.0)
        row = {
            "x": eps * from_x,
            "x0": math.sqrt(following),
            "prediction": eps * from_prediction,
            "noise": sigma,
            "next_input": 1.0,
        }
        rows.append({**_x0_columns(how, signal, noise), **row})
    return _table(rows, how)


def euler_table(sigmas: Sequence[float], how: Parameterisation) -> Table:
    """(S, 13) of :func:`.k_diffusion.sample_euler`. Raises ``ValueError`` as that does."""
    levels = checked_sigmas(sigmas)
    return _sigma_table(levels, how, [_euler_row(sigma, following) for sigma, following in pairwise(levels)])


def euler_ancestral_table(sigmas: Sequence[float], how: Parameterisation, *, eta: float = 1.0) -> Table:
    """(S, 13) of :func:`.k_diffusion.sample_euler_ancestral`. Raises ``ValueError`` for other sigmas."""
    levels = checked_sigmas(sigmas)
    rows = []
    for sigma, following in pairwise(levels):
        down, up = ancestral_split(sigma, following, eta)
        rows.append({**_euler_row(sigma, down), "noise": up})
    return _sigma_table(levels, how, rows)


def dpmpp_2m_table(sigmas: Sequence[float], how: Parameterisation) -> Table:
    """(S, 13) of :func:`.k_diffusion.sample_dpmpp_2m`. Raises ``ValueError`` as that does."""
    levels = checked_sigmas(sigmas)
    steps = _log_steps(levels)
    rows: list[Row] = []
    for k, h in enumerate(steps):
        reach, ahead = -math.expm1(-h), h / (2 * steps[k - 1]) if k else 0.0
        rows.append({"x": math.exp(-h), "x0": reach * (1 + ahead), "x0_1": -reach * ahead})
    return _sigma_table(levels, how, [*rows, {"x0": 1.0}])


def dpmpp_2m_sde_table(
    sigmas: Sequence[float], how: Parameterisation, *, eta: float = 1.0, solver: Midpoint = "midpoint"
) -> Table:
    """(S, 13) of :func:`.k_diffusion.sample_dpmpp_2m_sde`. Raises ``ValueError`` for other sigmas or solvers."""
    levels = checked_sigmas(sigmas)
    steps, weight = _log_steps(levels), second_order_weight(solver)
    rows = []
    for k, h in enumerate(steps):
        reach = h * (1 + eta)
        slope = weight(reach) * h / steps[k - 1] if k else 0.0
        row = {"x": math.exp(-reach), "x0": slope - math.expm1(-reach), "x0_1": -slope}
        rows.append({**row, "noise": noise_deviation(levels[k + 1], eta * h)})
    return _sigma_table(levels, how, [*rows, {"x0": 1.0}])


def dpmpp_3m_sde_table(sigmas: Sequence[float], how: Parameterisation, *, eta: float = 1.0) -> Table:
    """(S, 13) of :func:`.k_diffusion.sample_dpmpp_3m_sde`. Raises ``ValueError`` for other sigmas."""
    levels = checked_sigmas(sigmas)
    steps = _log_steps(levels)
    rows = []
    for k, h in enumerate(steps):
        reach = h * (1 + eta)
        now, one, two = _third_order(reach, [past / h for past in reversed(steps[max(0, k - 2) : k])])
        row = {"x": math.exp(-reach), "x0": now - math.expm1(-reach), "x0_1": one, "x0_2": two}
        rows.append({**row, "noise": noise_deviation(levels[k + 1], eta * h)})
    return _sigma_table(levels, how, [*rows, {"x0": 1.0}])


def needs_noise(table: Table) -> bool:
    """Whether a step adds noise; a launch without it would make x NaN."""
    return bool(_column(table, "noise").any())


def history_slots(table: Table) -> int:
    """How many earlier x0 the steps look back to, 0 to 2: the length of the history that a launch needs."""
    return 2 if _column(table, "x0_2").any() else int(_column(table, "x0_1").any())


def table_step(
    x: Any, prediction: Any, row: Sequence[float], *, noise: Any = None, x0_1: Any = None, x0_2: Any = None
) -> tuple[Any, Any]:
    """x after a step, and its x0: (B, C, H, W) each, from x of that shape and a prediction (G * B, C, H, W).

    Args:
        row: of a table. The next model input is ``row[12]`` times the result.
        x0_1: x0 of the step before.
        x0_2: x0 of the one before that.

    Raises ``ValueError`` where the row asks for noise or an earlier x0 that is not given.
    """
    of = dict(zip(COLUMNS, map(float, row), strict=True))
    slots = len(prediction) // max(len(x), 1) or 1
    guided = guide(prediction, (of["guidance_1"], of["guidance_2"])[: slots - 1])
    x0 = (of["x0_from_x"] * x + of["x0_from_prediction"] * guided).clip(of["clamp_low"], of["clamp_high"])
    operands = {"x": x, "x0": x0, "prediction": guided, "x0_1": x0_1, "x0_2": x0_2, "noise": noise}
    result = None
    for name, operand in operands.items():
        if of[name] != 0:
            if operand is None:
                raise ValueError(f"the row's coefficient of {name} is {of[name]}, but there is none; give {name}")
            term = of[name] * operand
            result = term if result is None else result + term
    return 0.0 * x0 if result is None else result, x0


def _column(table: Table, name: str) -> Table:
    return table[:, COLUMNS.index(name)]


def _log_steps(levels: Sequence[float]) -> list[float]:
    """The lengths of all steps but the last, in lambda = -log(sigma)."""
    return [math.log(sigma / following) for sigma, following in pairwise(levels[:-1])]


def _euler_row(sigma: float, following: float) -> Row:
    return {"x": following / sigma, "x0": 1 - following / sigma}


def _third_order(reach: float, lengths: Sequence[float]) -> tuple[float, float, float]:
    """What the curvature adds to the coefficients of x0, x0_1 and x0_2.

    Args:
        lengths: of the steps before, the last one first, over the length of this one.
    """
    if not lengths:
        return 0.0, 0.0, 0.0
    phi_2 = math.expm1(-reach) / reach + 1
    if len(lengths) == 1:
        return phi_2 / lengths[0], -phi_2 / lengths[0], 0.0
    r_0, r_1 = lengths
    bend = (phi_2 * r_0 - (phi_2 / reach - 0.5)) / (r_0 + r_1)
    # x0's slope over the last step, and over the one before it.
    slope, earlier = (phi_2 + bend) / r_0, -bend / r_1
    return slope, earlier - slope, -earlier


def _x0_columns(how: Parameterisation, signal: float, noise: float) -> Row:
    """x0 of ``x = signal * x0 + noise * eps``."""
    if how.prediction == "v":
        return {"x0_from_x": signal, "x0_from_prediction": -noise}
    return {"x0_from_x": 1 / signal, "x0_from_prediction": -noise / signal}


def _sigma_table(levels: Sequence[float], how: Parameterisation, rows: Sequence[Row]) -> Table:
    """The table of a k-diffusion solver, whose x is the model's input over the input scale."""
    full = []
    for (sigma, following), row in zip(pairwise(levels), rows, strict=True):
        if how.prediction == "v":
            x0 = {"x0_from_x": 1 / (sigma**2 + 1), "x0_from_prediction": -sigma * input_scale(sigma)}
        else:
            x0 = {"x0_from_x": 1.0, "x0_from_prediction": -sigma}
        full.append({**x0, **row, "next_input": input_scale(following)})
    return _table(full, how)


def _table(rows: Sequence[Row], how: Parameterisation) -> Table:
    """Rows with the columns that all solvers share; what a row does not name is 0."""
    low, high = how.clamp or (-math.inf, math.inf)
    table = np.zeros((len(rows), len(COLUMNS)))
    for k, row in enumerate(rows):
        scales = dict(zip(("guidance_1", "guidance_2"), how.scales(k), strict=False))
        given = {"guidance_1": 1.0, "guidance_2": 1.0, **scales, "clamp_low": low, "clamp_high": high, **row}
        table[k] = [given.get(name, 0.0) for name in COLUMNS]
    return table.astype(np.float32)
