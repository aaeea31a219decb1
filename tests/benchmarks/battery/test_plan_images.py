from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from battery import plan_images
from battery.part import Options, Row
from battery.plan_backends import CUDNN, TRITON, Watched, watch
from battery.plan_images import Runs, beside, growth, image_times, images, launches, same_bits
from battery.plan_subjects import Subject

DRY_RUN, ON_A_GPU = Options(dry_run=True), Options(dry_run=False)
IMAGE = np.ones((1, 3, 2, 2), np.float32)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)


@pytest.fixture
def one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are slow in the interpreter."""
    monkeypatch.setattr(Options, "steps", 1)


def rows_with(monkeypatch: pytest.MonkeyPatch, subject: Subject, name: str) -> list[Row]:
    monkeypatch.setattr(plan_images, "animediffusion", lambda options: subject)
    return list(images(name, DRY_RUN))


@pytest.mark.usefixtures("one_step")
def test_an_image_is_right_one_graph_and_untimed(plan_subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    step, image, bits, launched, loop, memory = rows_with(monkeypatch, plan_subject, CUDNN)
    assert all(0 < row["error"] <= row["budget"] for row in (step, image))
    assert (bits["runs"], bits["equal"]) == (2, True)
    assert (launched["graphs"], launched["other_launches"]) == (1, 0)
    assert loop == {"backend": CUDNN, "what": "image, whole loop", "steps": DRY_RUN.steps}
    assert memory["gpu_growth_bytes"] == 0
    assert not any("red" in row for row in (step, image, bits, launched, memory))


@pytest.mark.usefixtures("one_step")
def test_a_step_of_other_weights_is_red_and_the_last_row(
    plan_subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = plan_subject.loaded
    name = next(name for name in loaded.weights if name.endswith("output.2.weight.krsc"))
    weights = {**loaded.weights, name: loaded.weights[name] * np.float16(1.5)}
    wrong = replace(plan_subject, loaded=replace(loaded, weights=weights))
    (row,) = rows_with(monkeypatch, wrong, CUDNN)
    assert row["what"] == "step against torch fp32"
    assert row["red"]


def runs_of(**fields: Any) -> Runs:
    watched = Watched(launches=0, graph_us=[20.0, 30.0])
    return replace(Runs([IMAGE, IMAGE], [9.0, 9.5], [10.0, 10.5], {}, watched), **fields)


def test_a_bit_that_differs_is_red() -> None:
    other = IMAGE.copy()
    other[0, 0, 0, 0] = np.nextafter(np.float32(1), np.float32(2))
    assert same_bits(runs_of(), IMAGE)["equal"]
    assert same_bits(runs_of(images=[IMAGE, other]), IMAGE)["red"]


@pytest.mark.parametrize(
    ("watched", "red"),
    [
        (Watched(0, [20.0, 30.0]), False),
        (Watched(0, [20.0] * 4), True),
        (Watched(2, [20.0] * 2), True),
    ],
    ids=["one graph", "two graphs", "a launch besides"],
)
def test_more_than_one_graph_an_image_is_red(watched: Watched, red: bool) -> None:
    assert launches(runs_of(watched=watched), ON_A_GPU).get("red", False) is red


@pytest.mark.parametrize(("ms", "met", "stretch"), [(7.9, True, True), (9.0, True, False), (15.1, False, False)])
def test_goals_are_of_the_devices_median(ms: float, met: bool, stretch: bool) -> None:
    row = image_times(runs_of(device_ms=[ms, ms]), ON_A_GPU)
    assert (row["p50_ms"], row["met"], row["stretch_met"]) == (ms, met, stretch)


@pytest.mark.parametrize(("leak", "red"), [(0, False), (1, True)])
def test_memory_that_grows_on_the_gpu_is_red(leak: int, red: bool) -> None:
    device = SimpleNamespace(free=1000)
    device.free_bytes = lambda: device.free

    def sample() -> None:
        device.free -= leak

    engine: Any = SimpleNamespace(sample=sample, backend=SimpleNamespace(device=device, working=lambda: nullcontext()))
    row = growth(engine, ON_A_GPU)
    assert row["gpu_growth_bytes"] == 1000 * leak
    assert row.get("red", False) is red


def test_the_ratio_to_a_rival_is_of_the_same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def opened(name: str, options: Options, network: Any) -> Iterator[Any]:
        if name == TRITON:
            raise RuntimeError("out of memory")
        yield object()

    monkeypatch.setattr(plan_images, "build_network", lambda *_, **__: None)
    monkeypatch.setattr(plan_images, "open_engine", opened)
    monkeypatch.setattr(plan_images, "repeated", lambda engine, options: runs_of())
    ours, other = beside(11.4, ON_A_GPU)
    assert (ours["backend"], ours["compiled_over_ours"]) == (CUDNN, 1.2)
    assert other["unavailable"] == "out of memory"
    assert "compiled_over_ours" not in next(beside(None, ON_A_GPU))


def test_watch_counts_what_is_enqueued_and_not_what_is_recorded() -> None:
    class Device:
        def launch(self, name: str, **_: Any) -> None: ...

        def capture(self, work: Callable[[], None]) -> Callable[[], None]:
            work()
            return lambda: None

    device: Any = Device()
    watched = watch(device)
    device.launch("a", n=1)
    replay = device.capture(lambda: device.launch("b", n=1))
    replay()
    replay()
    assert (watched.launches, len(watched.graph_us)) == (1, 2)
    watched.forget()
    assert (watched.launches, watched.graph_us) == (0, [])
