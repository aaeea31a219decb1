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


def _parameters() -> list:
    parameters = []
    for family in families():
        cases = list(cases_of(family))
        parameters += [pytest.param(family, case, id=f"{family}-{case.name}") for case in cases]
        if not cases:
            parameters.append(pytest.param(family, None, id=f"{family}-absent"))
    return parameters


def _runner(runners: Mapping[str, Mapping[str, Runner]], family: str, case: Case | None) -> Runner:
    if case is None:
        pytest.skip(f"no conformance cases for {family} in {FOLDER}; set SAISHIKI_CONFORMANCE to their folder")
    if family not in runners:
        pytest.skip(f"the family {family} is not built yet")
    return runners[family][case.module]


@pytest.mark.parametrize(("family", "case"), _parameters())
def test_network(family: str, case: Case | None) -> None:
    if case is not None and family in NETWORK_RUNNERS and case.module not in NETWORK_RUNNERS[family]:
        pytest.fail(f"{case.name}: no runner for the module {case.module!r}")
    runner = _runner(NETWORK_RUNNERS, family, case)
    case.check(runner(case))


@pytest.mark.parametrize(("family", "case"), _parameters())
def test_exported_onnx(family: str, case: Case | None) -> None:
    if case is not None and family in BUNDLE_RUNNERS and case.module not in BUNDLE_RUNNERS[family]:
        if case.module in NETWORK_RUNNERS[family]:
            pytest.skip(f"{case.module} involves no network, or taps inside it")
        pytest.fail(f"{case.name}: no runner for the module {case.module!r}")
    runner = _runner(BUNDLE_RUNNERS, family, case)
    case.check(runner(case))
