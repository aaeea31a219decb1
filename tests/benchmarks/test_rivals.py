"""The published computation, the rows that are compared with it, the rounds, the report and the plot."""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest
import rivals
import torch
from rival_bench import entries
from rival_bench.comparison import compare, is_red
from rival_bench.entries import ENTRIES, NEEDS_GPU, PUBLISHED, Entry
from rival_bench.plot import write_plot
from rival_bench.published import published_unet
from rival_bench.rounds import Effort, Samples, cuda_events, interleaved
from rival_bench.scene import IMAGE, STEP, Budget, Scene, System
from rival_bench.torch_systems import TorchRecipe, captured, torch_system
from rivals import QUICK_PLAN, open_scene

from saishiki.runtime.bench.measure import Warmup
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.parity import psnr_db, relative_error

ON_A_CPU = [entry for entry in ENTRIES if entry.onto is None or entry.precision == "fp32"][:4]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rival_bench.rounds.REST_S", 0)


@pytest.fixture(scope="module")
def scene(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return open_scene(tiny_checkpoint, tiny_bundle, tmp_path_factory.mktemp("scene"), size_px=32, steps=3)


def entry_of(name: str) -> Entry:
    (found,) = (entry for entry in ENTRIES if entry.name == name)
    return found


def changed(amount: float) -> Entry:
    """The published computation, a little off."""

    def open_changed(scene: Scene, device: str) -> System:
        system = ENTRIES[0].open(scene, device)
        return System(lambda: system.step() + amount, system.image)  # type: ignore[operator]

    return Entry("changed", "fp32", open_changed, lambda bundle, device: None)


def test_published_attention_is_ours_without_the_fused_one(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = scene.model.network.denoise_fn
    x, t = torch.randn(2, 7, 32, 32), torch.tensor([901, 1])
    with torch.inference_mode():
        ours = unet(x, t)
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)
        published = published_unet(unet)(x, t)
        with pytest.raises(TypeError):
            unet(x, t)
    assert relative_error(published.numpy(), ours.numpy()) < 1e-6


def test_the_time_path_runs_in_every_published_step(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    plain = type(scene.model.network.denoise_fn).time_projections

    def counting(unet: Any, t: torch.Tensor) -> torch.Tensor:
        calls.append(len(t))
        return plain(unet, t)

    monkeypatch.setattr(type(scene.model.network.denoise_fn), "time_projections", counting)
    for recipe, expected in ((TorchRecipe(), [1, 1, 1]), (TorchRecipe(hoisted=True), [])):
        system = torch_system(recipe, scene, "cpu")
        calls.clear()
        system.image()
        assert calls == expected


@pytest.mark.parametrize(
    ("recipe", "least_psnr_db"),
    [
        (TorchRecipe(hoisted=True), 100),
        (TorchRecipe(hoisted=True, sdpa=True), 100),
        (TorchRecipe(hoisted=True, sdpa=True, sampler="fused", one_graph=True), 100),
        (TorchRecipe(half=True), 50),
        (TorchRecipe(hoisted=True, sdpa=True, half=True, sampler="fused"), 50),
    ],
    ids=["hoisted", "sdpa", "fused sampler", "half", "half and fused"],
)
def test_recipes_make_the_published_image(scene: Scene, recipe: TorchRecipe, least_psnr_db: float) -> None:
    published, system = (torch_system(each, scene, "cpu") for each in (TorchRecipe(), recipe))
    first, second = (np.asarray(each.image()) for each in (published, system))
    assert psnr_db(second, first) > least_psnr_db
    assert relative_error(np.asarray(system.step()), np.asarray(published.step())) < (5e-3 if recipe.half else 1e-5)


def test_the_published_image_is_that_of_the_reference(scene: Scene) -> None:
    image = np.asarray(torch_system(TorchRecipe(), scene, "cpu").image())
    tensors = [torch.from_numpy(array) for array in (*scene.pictures, scene.noise.start, scene.step_noise)]
    with torch.inference_mode():
        states = scene.model.sample(*tensors, eta=1.0)
    assert relative_error(image, states[-1].numpy()) < 1e-5


def test_rows_on_a_cpu_match_and_are_timed(scene: Scene) -> None:
    rows = compare(ON_A_CPU, scene, "cpu", QUICK_PLAN.efforts)
    assert [row["name"] for row in rows] == [entry.name for entry in ON_A_CPU]
    for row in rows:
        assert not is_red(row)
        assert row["clock"] == "wall"
        for subject in (STEP, IMAGE):
            times = row["times"][subject]
            assert times["n"] == len(times["samples_ms"])
            published = rows[0]["times"][subject]["p50_ms"]
            assert times["over_published"] == pytest.approx(published / times["p50_ms"], abs=1e-3)
    assert "over_previous" in rows[1]["times"][STEP]


def test_a_ratio_is_clear_beyond_both_spreads(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    times_ms = {ENTRIES[0].name: [10.0, 11.0, 9.0], ENTRIES[1].name: [8.5, 9.5, 9.0], ENTRIES[2].name: [4.5, 4.4, 4.6]}

    def faked(runs: Any, effort: Effort) -> dict[str, Samples]:
        return {name: Samples(Warmup(6, 0.0, 0.05, True), tuple(times_ms[name])) for name in runs}

    monkeypatch.setattr("rival_bench.comparison.interleaved", faked)
    rows = compare(ENTRIES[:3], scene, "cpu", QUICK_PLAN.efforts)
    found = [
        (times["over_previous"], times["over_previous_clear"]) for times in (row["times"][STEP] for row in rows[1:])
    ]
    assert found == [(1.111, False), (2.0, True)]
    assert rows[2]["times"][IMAGE]["over_published"] == 2.222


def test_a_wrong_rival_is_red_and_untimed(scene: Scene) -> None:
    rows = compare([ENTRIES[0], changed(1e-3), changed(float("nan"))], scene, "cpu", QUICK_PLAN.efforts)
    assert [is_red(row) for row in rows] == [False, True, True]
    assert [row["parity"][STEP]["red"] for row in rows] == [False, True, True]
    assert [sorted(row.get("times", ())) for row in rows] == [[IMAGE, STEP], [], []]
    assert 1e-4 < rows[1]["parity"][STEP]["error"] < 1e-2


def test_a_rival_that_fails_hides_no_other(scene: Scene) -> None:
    def fail(scene: Scene, device: str) -> System:
        raise RuntimeError("no luck\nand more")

    failing = replace(ENTRIES[1], open=fail)
    rows = compare([ENTRIES[0], failing, ENTRIES[2]], scene, "cpu", QUICK_PLAN.efforts)
    assert rows[1]["failed"] == "RuntimeError: no luck"
    assert is_red(rows[1])
    assert "times" in rows[2]
    with pytest.raises(RuntimeError, match="no luck"):
        compare([failing], scene, "cpu", QUICK_PLAN.efforts)


def test_what_needs_a_gpu_says_so(scene: Scene) -> None:
    reasons = {entry.name: entry.why_not(scene.bundle, "cpu") for entry in ENTRIES}
    needing = [name for name, reason in reasons.items() if reason == NEEDS_GPU]
    assert needing == [
        "+ fp16 policy",
        "+ fused sampler",
        "+ one CUDA graph of the loop",
        "published, PyTorch eager fp16",
        "published, torch.compile fp16",
    ]
    assert all(entry_of(name).why_not(scene.bundle, "cuda") is None for name in needing)
    assert reasons[PUBLISHED] is None


def test_engines_that_are_not_there_are_told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    rival = entry_of("TensorRT for RTX, fp16")
    monkeypatch.setattr(entries, "why_unavailable", lambda name: None)
    assert rival.why_not(scene.bundle, "cuda") == "the bundle has no engines of tensorrt-rtx"
    monkeypatch.setattr(entries, "why_unavailable", lambda name: f"no {name} here")
    assert rival.why_not(scene.bundle, "cuda") == "no tensorrt-rtx here"


def test_torch_compile_needs_a_compiler_on_a_cpu(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    rival = entry_of("published, torch.compile fp32")
    monkeypatch.setattr(entries.shutil, "which", lambda name: None)
    assert "neither g++ nor c++" in str(rival.why_not(scene.bundle, "cpu"))
    assert rival.why_not(scene.bundle, "cuda") is None


def test_every_saving_builds_on_an_earlier_row() -> None:
    names = [entry.name for entry in ENTRIES]
    assert len(set(names)) == len(names)
    for index, entry in enumerate(ENTRIES):
        assert entry.onto is None or entry.onto in names[:index]


def test_budgets_are_those_of_the_certificate(scene: Scene) -> None:
    fp32, fp16 = (Budget.of(scene.bundle, precision) for precision in ("fp32", "fp16"))
    assert fp32.step_error == 2e-5 < fp16.step_error < 0.1
    assert fp16.image_psnr_db < fp32.image_psnr_db
    image = np.zeros((1, 3, 4, 4), np.float32)
    assert not fp32.judge(IMAGE, image, image)["red"]
    assert fp32.judge(IMAGE, image + 0.1, image)["red"]
    assert fp32.judge(IMAGE, image[:, :2], image)["red"]


class Machine:
    """A clock, and systems whose runs take as long as a list says, then the last for ever."""

    def __init__(self) -> None:
        self.now, self.order = 0.0, list[str]()

    def system(self, name: str, times_ms: list[float]) -> Callable[[], float]:
        waiting = list(times_ms)

        def run() -> float:
            taken = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            self.order.append(name)
            self.now += taken / 1e3
            return taken

        return run


def test_rounds_take_turns_in_an_order_drawn_anew() -> None:
    machine = Machine()
    runs = {name: machine.system(name, [1.0]) for name in "abc"}
    measured = interleaved(runs, Effort(20, 20, 100), clock=lambda: machine.now)
    rounds = ["".join(machine.order[at : at + 3]) for at in range(0, len(machine.order), 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert len(set(rounds)) == 6
    assert {name: len(each.samples_ms) for name, each in measured.items()} == {"a": 20, "b": 20, "c": 20}
    assert all(each.warmup.runs == 6 for each in measured.values())


def test_the_warm_up_waits_until_all_stand_still() -> None:
    machine = Machine()
    runs = {"slow": machine.system("slow", [9.0, 8, 7, 6, 5, 4, 3]), "quick": machine.system("quick", [1.0])}
    measured = interleaved(runs, Effort(4, 4, 100), clock=lambda: machine.now)
    assert measured["slow"].samples_ms == (3.0,) * 4
    assert measured["slow"].warmup.runs == measured["quick"].warmup.runs == 12
    assert measured["slow"].warmup.stable


def test_what_never_stands_still_is_told() -> None:
    machine = Machine()
    runs = {"growing": machine.system("growing", [1.5**k for k in range(30)]), "still": machine.system("still", [1.0])}
    measured = interleaved(runs, Effort(2, 50, 0.05), clock=lambda: machine.now)
    assert not measured["growing"].warmup.stable
    assert measured["growing"].warmup.change == pytest.approx(1.5**3 - 1)
    assert measured["still"].warmup.stable
    assert 2 <= len(measured["still"].samples_ms) < 50
    assert interleaved({}, Effort(1, 1, 1)) == {}


def test_no_round_begins_after_the_limit() -> None:
    """A round takes 2 s: three are wanted, and one is over when the limit has passed."""
    machine = Machine()
    runs = {name: machine.system(name, [1000.0]) for name in "ab"}
    measured = interleaved(runs, Effort(3, 9, 0, limit_s=3), clock=lambda: machine.now)
    assert {name: (each.warmup.runs, len(each.samples_ms)) for name, each in measured.items()} == {
        "a": (1, 2),
        "b": (1, 2),
    }
    unlimited = interleaved(runs, Effort(3, 9, 0), clock=lambda: machine.now)
    assert len(unlimited["a"].samples_ms) == 3


def test_the_warm_up_ends_within_a_window() -> None:
    machine = Machine()
    measured = interleaved({"a": machine.system("a", [1000.0])}, Effort(1, 1, 2), clock=lambda: machine.now)
    assert measured["a"].warmup.runs == 2
    assert measured["a"].warmup.change is None
    assert not measured["a"].warmup.stable


@pytest.mark.parametrize(
    ("effort", "round_s", "most_s"),
    [
        (Effort(3, 10, 60), 1, 60 + 1 + 60 + 1),
        (Effort(3, 10, 60), 100, 60 + 100 + 300 + 100),
        (Effort(3, 10, 60, limit_s=200), 100, 60 + 100 + 200 + 100),
    ],
    ids=["by seconds", "by rounds", "by the limit"],
)
def test_most_seconds_are_never_exceeded(effort: Effort, round_s: float, most_s: float) -> None:
    assert effort.most_s(round_s) == most_s
    machine = Machine()
    never_still = [1e3 * round_s * (1 + k % 7 / 10) / 1.6 for k in range(400)]
    interleaved({"a": machine.system("a", never_still)}, effort, clock=lambda: machine.now)
    assert machine.now <= most_s


def test_what_comes_is_announced(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(scene: Scene, device: str) -> System:
        raise RuntimeError("no luck")

    told: list[str] = []
    failing = replace(ENTRIES[1], open=fail)
    compare([ENTRIES[0], failing, entry_of("+ fp16 policy")], scene, "cpu", QUICK_PLAN.efforts, say=told.append)
    check = ": opening, and checking one step and one image"
    assert told[:2] == [ENTRIES[0].name + check, ENTRIES[1].name + check]
    assert [line.split(" by turns, ")[0] for line in told[2:]] == ["step: 1 rows", "image: 1 rows"]
    assert all(line.endswith("s in all at the most") for line in told[2:])


class Cuda:
    """torch.cuda as far as a capture and a timed run need it; says what was called, and times by how much ran."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def note(self, what: str) -> Any:
        self.calls.append(what)
        wait, replay = (lambda: self.calls.append("wait")), (lambda: self.calls.append("replay"))
        return SimpleNamespace(synchronize=wait, replay=replay)

    @contextlib.contextmanager
    def inside(self, what: str) -> Iterator[None]:
        self.calls.append(f"begin {what}")
        yield
        self.calls.append(f"end {what}")

    def event(self, *, enable_timing: bool) -> Any:
        assert enable_timing
        event = SimpleNamespace(at=-1, synchronize=lambda: self.calls.append("wait"))
        event.record = lambda: setattr(event, "at", len(self.calls))
        event.elapsed_time = lambda end: 1 + end.at - event.at
        return event

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "Stream", lambda: self.note("stream"))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self.note("graph"))
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: self.inside("stream"))
        monkeypatch.setattr(torch.cuda, "graph", lambda graph: self.inside("capture"))
        monkeypatch.setattr(torch.cuda, "Event", self.event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self.calls.append("idle"))


def test_a_capture_warms_up_aside_and_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda()
    cuda.install(monkeypatch)
    replay = captured(lambda: cuda.calls.append("run") or "image", "cuda")  # type: ignore[func-returns-value]
    aside = ["stream", "begin stream", "run", "run", "run", "end stream", "wait"]
    assert cuda.calls == [*aside, "graph", "begin capture", "run", "end capture"]
    cuda.calls.clear()
    assert replay() == "image"
    assert cuda.calls == ["replay"]


def test_cuda_events_enclose_the_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda()
    cuda.install(monkeypatch)
    timed = cuda_events(lambda: cuda.calls.extend(["run", "run", "run"]))
    assert timed() == 4.0
    assert cuda.calls == ["idle", "run", "run", "run", "wait"]


def test_rows_on_a_gpu_are_timed_by_events(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    Cuda().install(monkeypatch)

    def on_gpu(scene: Scene, device: str) -> System:
        return replace(ENTRIES[0].open(scene, "cpu"), device="cuda")

    rows = compare([replace(ENTRIES[0], open=on_gpu), ENTRIES[1]], scene, "cpu", QUICK_PLAN.efforts)
    assert [row["clock"] for row in rows] == ["CUDA events", "wall"]


def arguments(**changes: Any) -> argparse.Namespace:
    given = rivals.parser().parse_args(["--quick", "--steps", "2", "--size", "32"])
    return argparse.Namespace(**(vars(given) | changes))


def test_the_whole_command(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(
        checkpoint=tiny_checkpoint, bundle=tiny_bundle, output=tmp_path / "r.json", plot=tmp_path / "r.svg"
    )
    chosen = [*ON_A_CPU[:1], *ON_A_CPU[3:], entry_of("+ fp16 policy")]
    assert rivals.run(given, chosen) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["schema"], result["size_px"], result["steps"], result["device"]) == (
        "saishiki.rivals/1",
        32,
        2,
        "cpu",
    )
    assert {"commit", "processor", "torch", "onnxruntime", "torch_threads", "state"} <= result["environment"].keys()
    assert [sorted(row["times"]) for row in result["rows"][:2]] == [[IMAGE, STEP], [IMAGE, STEP]]
    percent = result["roofline"]["step_percent"]
    floor, p50 = result["roofline"]["floor_ms"], result["rows"][0]["times"][STEP]["p50_ms"]
    assert percent[PUBLISHED] == pytest.approx(100 * floor / p50, abs=0.06)
    assert "+ fp16 policy" in (tmp_path / "r.svg").read_text()
    out = capsys.readouterr().out
    assert "needs a GPU" in out
    assert "projection from the vendor's peaks; nothing was measured on this GPU" in out
    assert f"({result['roofline']['ceilings']['fastest_product']})" in out


def test_a_red_row_is_exit_status_1(tiny_checkpoint: Path, tiny_bundle: Path, capsys: Any) -> None:
    given = arguments(checkpoint=tiny_checkpoint, bundle=tiny_bundle)
    assert rivals.run(given, [ENTRIES[0], changed(1e-3)]) == 1
    assert "red: {" in capsys.readouterr().out


@pytest.mark.parametrize(("suffix", "stable"), [("png", True), ("svg", True), ("svg", False)])
def test_a_plot_is_written_whole(tmp_path: Path, suffix: str, stable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"p50_ms": 2.0, "p99_ms": 3.0, "over_published": 1.0, "warmup": {"stable": stable}}
    row: dict[str, Any] = {"onto": None, "times": {IMAGE: times}}
    layer = {"layer": "a", "op": "Conv", "shape": [1, 4, 4], "gflop": 1.0, "mb": 1.0, "us": 9.0, "floor_us": 3.0}
    result = {
        "rows": [{"name": PUBLISHED, **row}],
        "size_px": 32,
        "steps": 3,
        "environment": dict.fromkeys(("processor", "cores", "torch", "onnxruntime", "commit"), "x"),
        "roofline": {
            "ceilings": {"copy_gb_per_s": 1.0, "matrix_product_gflop_per_s": 10.0},
            "layer_rows": [layer],
            "farthest": ["a"],
        },
    }
    path = tmp_path / f"plot.{suffix}"
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    write_plot(result, path)
    if suffix == "svg":
        assert ("the machine was not idle" in path.read_text()) is not stable
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    assert list(tmp_path.iterdir()) == [path]


def test_a_plot_without_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'saishiki\[bench\]'"):
        write_plot({}, tmp_path / "plot.svg")
    assert not list(tmp_path.iterdir())


def refused(*given: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("sys.argv", ["rivals.py", *given])
    begin = time.perf_counter()
    with pytest.raises(SystemExit) as caught:
        rivals.main()
    assert caught.value.code == 2
    assert time.perf_counter() - begin < 10  # before anything is measured
    return capsys.readouterr().err


def test_bad_input_is_refused_at_once(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = ("--checkpoint", str(tiny_checkpoint), "--bundle", str(tiny_bundle))

    def words(*given: str) -> str:
        return refused(*given, capsys=capsys, monkeypatch=monkeypatch)

    assert "no profile that holds 48x48; export it with --size 48" in words(*tiny, "--size", "48")
    assert "is of the checkpoint tiny.safetensors, not of faces" in words("--bundle", str(tiny_bundle))
    assert "ends in .svg or .png" in words(*tiny, "--plot", str(tmp_path / "plot.gif"))
    assert "does not exist" in words(*tiny, "--output", str(tmp_path / "missing" / "r.json"))
    assert "a full-size run is 256x256, got --size 64" in words("--full-size", "--size", "64")
    assert "got 0" in words(*tiny, "--size", "32", "--steps", "0")
    assert "not allowed with argument --full-size" in words("--full-size", "--checkpoint", "x")
    assert not list(tmp_path.iterdir())


def test_the_bundle_must_state_its_budgets(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    certificate = replace(bundle.manifest.certificate, rows=())
    empty = replace(bundle, manifest=replace(bundle.manifest, certificate=certificate))
    with pytest.raises(ValueError, match="states no budget"):
        Budget.of(empty, "fp32")
