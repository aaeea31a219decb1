"""Every published case of every family: one test per case, for the PyTorch network and for the exported fp32 ONNX.

``SAISHIKI_CONFORMANCE`` names the folder of the cases. A family that is not built yet is skipped by name; a module that
no runner knows fails.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from tests.conformance import FOLDER, Case, cases_of, families
from tests.conformance_runners import animediffusion

Runner = Callable[[Case], Mapping[str, np.ndarray]]

NETWORK_RUNNERS: Mapping[str, Mapping[str, Runner]] = {"animediffusion": animediffusion.NETWORK}
BUNDLE_RUNNERS: Mapping[str, Mapping[str, Runner]] = {"animediffusion": animediffusion.BUNDLE}


def _parameters(leaves_out: Callable[[Case], bool] = lambda case: False) -> list:
    parameters = []
    for family in families():
        cases = [case for case in cases_of(family) if not leaves_out(case)]
        parameters += [pytest.param(family, case, id=f"{family}-{case.name}") for case in cases]
        if not cases:
            parameters.append(pytest.param(family, None, id=f"{family}-absent"))
    return parameters


def _needs_no_bundle(case: Case) -> bool:
    """Whether a case of a known module is about no network, or about the inside of one."""
    known = case.module in NETWORK_RUNNERS.get(case.family, {})
    return known and (case.module not in BUNDLE_RUNNERS[case.family] or animediffusion.looks_inside(case))


def _run(runners: Mapping[str, Mapping[str, Runner]], family: str, case: Case | None) -> None:
    if case is None:
        pytest.skip(f"no conformance cases for {family} in {FOLDER}; set SAISHIKI_CONFORMANCE to their folder")
    if family not in runners:
        pytest.skip(f"the family {family} is not built yet")
    if case.module not in runners[family]:
        pytest.fail(f"{case.name}: no runner for the module {case.module!r}")
    case.check(runners[family][case.module](case))


@pytest.mark.parametrize(("family", "case"), _parameters())
def test_network(family: str, case: Case | None) -> None:
    _run(NETWORK_RUNNERS, family, case)


@pytest.mark.parametrize(("family", "case"), _parameters(_needs_no_bundle))
def test_exported_onnx(family: str, case: Case | None) -> None:
    _run(BUNDLE_RUNNERS, family, case)
