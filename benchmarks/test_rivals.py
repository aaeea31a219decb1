"""The rows of ``rivals.py`` under pytest-benchmark, one after the other: its tables, histograms and comparisons.

    pytest benchmarks --benchmark-enable --benchmark-json rivals.json

Every benchmark first holds its output against the published computation's, and fails without a time where it differs.
``rivals.py`` runs the same rows by turns, which is fairer on a machine that is not idle.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bundle_bench.declarations import FULL, SMOKE
from bundle_bench.exports import Exports
from reporting import describe_machine
from rival_bench.comparison import array_from
from rival_bench.entries import ENTRIES, Entry
from rival_bench.scene import SUBJECTS, Budget, Scene
from rival_bench.torch_systems import prepare_torch
from rivals import STEPS, open_scene

from saishiki.runtime.signature import Array

ROUNDS, WARMUP_ROUNDS = 10, 3
SMOKE_STEPS = 2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def scene(smoke: bool, exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The demo checkpoint, or a tiny one where nothing is timed, exported."""
    prepare_torch()
    declaration, steps = (SMOKE[0], SMOKE_STEPS) if smoke else (FULL[0], STEPS)
    folder, bundle = tmp_path_factory.mktemp("rivals"), exports.bundle(declaration)
    return open_scene(declaration.checkpoint(folder), bundle.path, folder, size_px=declaration.size_px, steps=steps)


@pytest.fixture(autouse=True)
def _compiled_only_when_timed(smoke: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A smoke run traces what is to be compiled, and compiles nothing: that takes a minute."""
    if smoke:
        plain: Any = torch.compile
        monkeypatch.setattr(torch, "compile", lambda network, *, mode: plain(network, backend="eager"))


@pytest.fixture(scope="session")
def published(scene: Scene) -> dict[str, Array]:
    """What the published computation gives, by subject."""
    system = ENTRIES[0].open(scene, DEVICE)
    return {subject: array_from(system.run(subject)()) for subject in SUBJECTS}


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_rival(subject: str, entry: Entry, scene: Scene, published: dict[str, Array], benchmark: Any) -> None:
    if (reason := entry.why_not(scene.bundle, DEVICE)) is not None:
        pytest.skip(reason)
    system = entry.open(scene, DEVICE)
    run = system.run(subject)
    verdict = Budget.of(scene.bundle, entry.precision).judge(subject, array_from(run()), published[subject])
    assert not verdict["red"], f"{entry.name} does not compute what is published, so it is not timed: {verdict}"
    benchmark.group = subject
    benchmark.extra_info |= {**verdict, **describe_machine(), "precision": entry.precision, "size_px": scene.size_px}
    benchmark.pedantic(_finished(run, system.device), rounds=ROUNDS, warmup_rounds=WARMUP_ROUNDS, iterations=1)


def _finished(run: Callable[[], object], device: str) -> Callable[[], None]:
    """``run`` until the device is done."""

    def finished() -> None:
        run()
        if device == "cuda":
            torch.cuda.synchronize()

    return finished
