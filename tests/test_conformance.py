"""Every published case of every family: for the PyTorch network, the exported fp32 ONNX, and plans lowered from it.

``SAISHIKI_CONFORMANCE`` names the folder of the cases. A family that is not built yet is skipped by name; a module that
no runner knows fails.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from tests.conformance import FOLDER, Case, cases_of, families
from tests.conformance_runners import animediffusion
from tests.conformance_runners.backends import running_on
from tests.conformance_runners.colorizediffusion import bundle as colorizediffusion_bundle
from tests.conformance_runners.colorizediffusion import network as colorizediffusion

Runner = Callable[[Case], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Runners:
    """How a family's cases are run, by the module they name.

    Args:
        network: on the PyTorch network.
        bundle: on an exported bundle through the runtime; None where the family cannot be exported yet.
        looks_inside: whether a case is about the inside of a network, which no bundle shows.
    """

    network: Mapping[str, Runner]
    bundle: Mapping[str, Runner] | None
    looks_inside: Callable[[Case], bool] = lambda case: False

    def needs_bundle(self, case: Case) -> bool:
        """Whether a case of a module that is known, or of one that must fail, can be run on a bundle."""
        if self.bundle is None or case.module not in self.network:
            return True
        return case.module in self.bundle and not self.looks_inside(case)


RUNNERS: Mapping[str, Runners] = {
    "animediffusion": Runners(animediffusion.NETWORK, animediffusion.BUNDLE, animediffusion.looks_inside),
    **dict.fromkeys(
        ("colorizediffusion-v1", "colorizediffusion-v1.5", "colorizediffusion-v2"),
        Runners(colorizediffusion.NETWORK, colorizediffusion_bundle.BUNDLE, colorizediffusion_bundle.looks_inside),
    ),
}


def _needs_bundle(case: Case) -> bool:
    return case.family not in RUNNERS or RUNNERS[case.family].needs_bundle(case)


def _parameters(wanted: Callable[[Case], bool] = lambda case: True, *, exported: bool = False) -> list:
    parameters = []
    for family in families():
        cases = [case for case in cases_of(family) if wanted(case)]
        marks = (pytest.mark.slow,) if exported and family in RUNNERS else ()
        parameters += [pytest.param(family, case, id=f"{family}-{case.name}", marks=marks) for case in cases]
        if not cases:
            parameters.append(pytest.param(family, None, id=f"{family}-absent"))
    return parameters


def _runners_of(family: str, case: Case | None) -> Runners:
    if case is None:
        pytest.skip(f"no conformance cases for {family} in {FOLDER}; set SAISHIKI_CONFORMANCE to their folder")
    if family not in RUNNERS:
        pytest.skip(f"the family {family} is not built yet")
    return RUNNERS[family]


def _run(runners: Mapping[str, Runner], case: Case) -> None:
    if case.module not in runners:
        pytest.fail(f"{case.name}: no runner for the module {case.module!r}")
    case.check(runners[case.module](case))


@pytest.mark.parametrize(("family", "case"), _parameters())
def test_network(family: str, case: Case) -> None:
    _run(_runners_of(family, case).network, case)


@pytest.mark.parametrize(("family", "case"), _parameters(_needs_bundle, exported=True))
def test_exported_onnx(family: str, case: Case) -> None:
    runners = _runners_of(family, case)
    if runners.bundle is None:
        pytest.skip(f"the family {family} has no export yet: its networks are checked above")
    _run(runners.bundle, case)


def _tells_little_of_plans(parameter_id: str) -> bool:
    """Samplers run on the host or in kernels of their own; without a mask v1.5 computes what v1 does."""
    of_sampler = "-sample_" in parameter_id or "-ddpm/" in parameter_id
    return of_sampler or parameter_id.startswith("colorizediffusion-v1-")


def _of_plans() -> list:
    """Cases that say nothing about plans that others do not are left out unless asked for."""
    parameters = _parameters(_needs_bundle, exported=True)
    exhaustive = [pytest.mark.exhaustive]
    return [
        pytest.param(*p.values, id=p.id, marks=[*p.marks, *(exhaustive if _tells_little_of_plans(str(p.id)) else [])])
        for p in parameters
    ]


@pytest.mark.parametrize(("family", "case"), _of_plans())
def test_plans(family: str, case: Case) -> None:
    runners = _runners_of(family, case)
    if runners.bundle is None:
        pytest.skip(f"the family {family} has no export yet: its networks are checked above")
    with running_on("plans"):
        _run(runners.bundle, case)
