"""``bench_kernels.py``: the dry run, that nothing red is timed, and how the targets are judged."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

import bench_kernels  # noqa: E402
from gpu_clock import Ceilings  # noqa: E402
from kernel_bench import measure, trials  # noqa: E402
from kernel_bench.cases import CASES, TINY_CASES, AttentionCase, GroupNormCase, KernelCase, SamplerCase  # noqa: E402
from kernel_bench.measure import Bench, checked, measured_row, red_rows, rival_row, targets_of  # noqa: E402
from kernel_bench.trials import COPY, SDPA, Place, Rival, Trial, trial_of  # noqa: E402
from roofline import Work  # noqa: E402

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_kernels.py"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASE = SamplerCase("test", (1, 1, 2, 2))


class Clock:
    """10 us whatever runs."""

    def replayed(self, run: Any) -> dict[str, float]:
        return {"p50_us": 10.0, "p90_us": 11.0, "p99_us": 12.0}

    launched = replayed


class NoClock:
    """Fails the test when anything is timed."""

    def replayed(self, run: Any) -> dict[str, float]:
        raise AssertionError("something red was timed")

    launched = replayed


@pytest.fixture(autouse=True)
def one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "launches_of", lambda run: 1)


def bench(clock: Any) -> Bench:
    return Bench(Place("cpu", True), clock, Ceilings(bandwidth=1e12, matrix_flops=1e14))


def trial(out: Any, rivals: dict[str, Rival] | None = None) -> Trial:
    """A trial whose exact result is 1, 1 and which torch gets wrong by 0.001."""
    exact = torch.ones(2, dtype=torch.float64)
    return Trial(
        work=Work(0, 0, 10**6, 1),
        run=lambda: out,
        outputs=lambda: (out,),
        truth=lambda: (exact,),
        plain=lambda: ((exact + 1e-3).float(),),
        rivals=rivals or {},
    )


def test_the_dry_run_tests_every_op_and_times_none(tmp_path: Path) -> None:
    output = tmp_path / "dry.json"
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), "--dry-run", "--output", str(output), "--commit", "1a2b3c4"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(output.read_text())
    assert result["environment"]["commit"] == "1a2b3c4"
    assert [row["case"] for row in result["cases"]] == [case.name for case in TINY_CASES]
    assert not any(row["red"] for row in result["cases"])
    assert "_us" not in output.read_text()
    on_a_gpu = {f"{label}sdpa {name}" for label in ("", "plain, one region, ", "plain, all keys, ") for name in SDPA}
    for row in result["cases"]:
        assert row["rivals"]
        unavailable = {name for name, rival in row["rivals"].items() if "unavailable" in rival}
        assert unavailable <= on_a_gpu
        assert not any(rival.get("red") for rival in row["rivals"].values())
        assert all(target["met"] is None for target in row["targets"])


@pytest.mark.parametrize("wrong", [1.0025, float("nan"), float("inf")])
def test_what_is_red_is_not_timed(wrong: float) -> None:
    out = torch.tensor([1.0, wrong])
    row = measured_row(CASE, trial(out, {"rival": Rival(lambda: out, same=False)}), bench(NoClock()))
    assert row["red"]
    assert set(row) == {"op", "case", "error", "budget", "red"}
    assert red_rows([row]) == [f"fused_sampler_step, {CASE.name}"]


def first_of(out: Any) -> Any:
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("op", sorted({case.op for case in TINY_CASES}))
def test_an_op_that_is_off_by_two_percent_is_red(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(trials, op)

    def wrong(x: Any, *arguments: Any, **options: Any) -> Any:
        out = right(x, *arguments, **options)
        written = first_of(x if out is None else out)
        spoiled = written * 1.02
        written.copy_(spoiled if written.is_floating_point() else spoiled.ceil())
        return out

    case = next(case for case in TINY_CASES if case.op == op)
    place = Place(DEVICE, True)
    assert not measured_row(case, trial_of(case, place), bench(None))["red"]
    monkeypatch.setattr(trials, op, wrong)
    assert measured_row(case, trial_of(case, place), bench(NoClock()))["red"]


def test_what_is_not_red_is_timed() -> None:
    row = measured_row(CASE, trial(torch.tensor([1.0, 1.0015])), bench(Clock()))
    assert not row["red"]
    assert (row["p50_us"], row["p90_us"], row["p99_us"], row["launches"]) == (10.0, 11.0, 12.0, 1)
    # 1 MB in 10 us is 100 GB/s, a tenth of the ceiling.
    assert (row["gb_per_s"], row["ceiling_percent"], row["bound"]) == (100.0, 10.0, "memory")


def test_a_case_that_fails_is_red_and_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_first(case: KernelCase, place: Any) -> Trial:
        if case is CASES[0]:
            raise ValueError("no such kernel")
        return trial(torch.ones(2))

    monkeypatch.setattr(measure, "trial_of", fail_first)
    monkeypatch.setattr(measure, "details_of", lambda case: {})
    first, second = measure.measured_rows([CASES[0], CASE], bench(None))
    assert (first["red"], first["failed"]) == (True, "ValueError: no such kernel")
    assert not second["red"]


def test_rivals_are_tried_once_per_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    rivals = {"rival": Rival(lambda: tried.append(1), same=False)}
    monkeypatch.setattr(measure, "trial_of", lambda case, place: trial(torch.ones(2), rivals))
    lines, figure, merged = (
        AttentionCase("test", 1, 4, 4, mask, 1, 64, 8, merge_scale)
        for mask, merge_scale in (("lines", 0.0), ("figure", 0.0), ("figure", 0.5))
    )
    rows = list(measure.measured_rows([lines, figure, merged], bench(None)))
    assert len(tried) == 2 * 2  # once to see that it runs, and once more
    assert rows[0]["rivals"] == rows[1]["rivals"] == {"rival": {}}


def test_a_red_row_is_an_exit_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(measure, "trial_of", lambda case, place: trial(torch.tensor([1.0, 2.0])))
    given = Namespace(static=False, dry_run=True, only="", output=None, commit=None)
    assert bench_kernels.run(given) == 1
    printed = capsys.readouterr()
    assert printed.err.count("red: ") == len(TINY_CASES)
    assert "not timed" in printed.out
    assert "p50" not in printed.out


def test_a_rival_that_is_wrong_is_not_timed() -> None:
    exact = torch.ones(2, dtype=torch.float64)
    wrong = Rival(lambda: torch.tensor([1.0, 2.0]), same=True)
    assert rival_row(wrong, (exact,), (exact,), NoClock())["red"]
    other = Rival(lambda: torch.zeros(7), same=False)
    assert rival_row(other, (exact,), (exact,), Clock())["p50_us"] == 10.0


def test_a_rival_that_refuses_says_why() -> None:
    def refuse() -> None:
        raise RuntimeError("no kernel for this\nand more")

    assert rival_row(Rival(refuse, same=True), (), (), NoClock()) == {"unavailable": "no kernel for this"}


def test_the_output_nearest_to_its_budget_counts() -> None:
    one = torch.ones(2, dtype=torch.float64)
    plain = ((one + 1e-3).float(), (one + 1e-5).float())
    assert not checked((one + 1e-3, one + 1e-5), plain, (one, one))["red"]
    row = checked((one + 1e-3, one + 1e-3), plain, (one, one))
    assert row["red"]
    assert row["budget"] == pytest.approx(2.1e-5, rel=0.05)


def attention_row(*, own: float, plain: tuple[float, float], eager: float, compiled: float) -> dict[str, Any]:
    times = {
        "plain, one region, sdpa flash": plain[0],
        "plain, one region, sdpa cudnn": plain[1],
        "plain, all keys, sdpa flash": 0.1,
        "two passes, eager": eager,
        "two passes, compiled": compiled,
    }
    rivals: dict[str, Any] = {name: {"p50_us": us} for name, us in times.items()}
    return {"p50_us": own, "rivals": {**rivals, "plain, one region, sdpa efficient": {"unavailable": "no"}}}


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (attention_row(own=11.5, plain=(20.0, 10.0), eager=23.0, compiled=14.95), [True, True, True]),
        (attention_row(own=11.6, plain=(20.0, 10.0), eager=23.0, compiled=14.0), [False, False, False]),
    ],
    ids=["met", "missed"],
)
def test_targets_of_attention_are_against_the_best_rival(row: dict[str, Any], met: list[bool]) -> None:
    case = AttentionCase("test", 1, 4, 4, "figure", 1, 64, 8)
    assert [target["met"] for target in targets_of(case, Work(1, 0, 1, 1), row)] == met


def test_a_merge_has_no_targets() -> None:
    case = AttentionCase("test", 1, 4, 4, "figure", 1, 64, 8, 0.5)
    assert targets_of(case, Work(1, 0, 1, 1), {"rivals": {}}) == []


@pytest.mark.parametrize(("percent", "met"), [(85.0, True), (84.9, False)])
def test_targets_of_what_memory_bounds(percent: float, met: bool) -> None:
    row = {"p50_us": 10.0, "ceiling_percent": percent, "launches": 1, "rivals": {}}
    large, work = SamplerCase("test", (64, 1, 1, 1)), Work(0, 0, 1 << 30, 1)
    norm = GroupNormCase("test", 1, (32,), 4, 4)
    for targets in (targets_of(large, work, row), targets_of(norm, work, row)):
        assert [target["met"] for target in targets] == [met]
    assert targets_of(norm, Work(0, 0, 1 << 20, 1), row) == []


@pytest.mark.parametrize(("copy_us", "met"), [(8.5, True), (8.4, False)])
def test_the_faster_copy_is_the_ceiling(copy_us: float, met: bool) -> None:
    row = {"p50_us": 10.0, "ceiling_percent": 99.0, "rivals": {COPY: {"p50_us": copy_us}}}
    (target,) = targets_of(SamplerCase("test", (64, 1, 1, 1)), Work(0, 0, 1 << 30, 1), row)
    assert (target["value"], target["met"]) == (pytest.approx(copy_us / 10), met)


@pytest.mark.parametrize(("launches", "met"), [(1, True), (2, False), (None, None)])
def test_a_step_of_one_image_is_one_launch(launches: int | None, met: bool | None) -> None:
    (target,) = targets_of(CASE, Work(0, 0, 1, 1), {"launches": launches, "rivals": {}})
    assert (target["what"], target["met"]) == ("launches", met)


def test_cases_cover_every_op_and_their_names_are_unique() -> None:
    from saishiki.kernels.build import OPS

    for cases in (CASES, TINY_CASES):
        assert {case.op for case in cases} == OPS.keys()
        assert len({(case.op, case.name) for case in cases}) == len(cases)
