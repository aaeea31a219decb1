"""``pytest benchmarks --benchmark-enable``: the scripts here import each other as plain modules.

Without ``--benchmark-enable`` everything runs once, on what is tiny.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from bundle_bench.declarations import FULL, RUNNERS, SMOKE, Declaration
from bundle_bench.exports import Exports
from bundle_bench.measured import Measured
from reporting import describe_machine

from saishiki.runtime.backends import why_unavailable
from saishiki.runtime.bench import FULL as FULL_PLAN
from saishiki.runtime.bench import QUICK as QUICK_PLAN
from saishiki.runtime.bench import runners_named
from saishiki.runtime.errors import BackendError


def is_smoke(config: pytest.Config) -> bool:
    """Whether nothing is timed."""
    return bool(config.getoption("benchmark_disable")) and not config.getoption("benchmark_enable")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for every bundle that is declared, for every module of it, and on every backend."""
    smoke = is_smoke(metafunc.config)
    declarations, runners = (SMOKE, RUNNERS[:1]) if smoke else (FULL, RUNNERS)
    if "runner" in metafunc.fixturenames:
        metafunc.parametrize("runner", runners)
    if "module" in metafunc.fixturenames:
        pairs = [(declaration, module) for declaration in declarations for module in declaration.modules]
        names = [f"{declaration.name}-{module}" for declaration, module in pairs]
        metafunc.parametrize(("declaration", "module"), pairs, ids=names, scope="session")
    elif "declaration" in metafunc.fixturenames:
        names = [declaration.name for declaration in declarations]
        metafunc.parametrize("declaration", declarations, ids=names, scope="session")


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Commit, processor and versions go with every result."""
    machine_info.update(describe_machine())


@pytest.fixture(scope="session")
def smoke(pytestconfig: pytest.Config) -> bool:
    """Whether nothing is timed."""
    return is_smoke(pytestconfig)


@pytest.fixture(scope="session")
def exports(smoke: bool, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """The bundles, exported when they are asked for; with engines where something could run them."""
    engines = why_unavailable("tensorrt-rtx") is None and not smoke
    return Exports(tmp_path_factory.mktemp("bundles"), "rtx" if engines else "onnx")


@pytest.fixture(scope="session")
def opened() -> Iterator[dict[tuple[str, str], Measured]]:
    """What is measured, by declaration and runner; all closed at the end."""
    found: dict[tuple[str, str], Measured] = {}
    yield found
    for measured in found.values():
        measured.close()


@pytest.fixture
def measured(
    declaration: Declaration, runner: str, exports: Exports, opened: dict[tuple[str, str], Measured], smoke: bool
) -> Measured:
    """The declared bundle on a runner; skips with the reason where it cannot run here."""
    if (declaration.name, runner) not in opened:
        bundle = exports.bundle(declaration)
        try:
            (chosen,) = runners_named(bundle, [runner]).runners
        except BackendError as error:
            pytest.skip(str(error))
        opened[declaration.name, runner] = Measured(bundle, chosen, QUICK_PLAN if smoke else FULL_PLAN)
    return opened[declaration.name, runner]
