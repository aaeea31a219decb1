from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from battery import plan_ops
from battery.part import Options, Row, SkippedError
from battery.plan_ops import BUDGET, OpBench, error_of, every_operation, sums_of
from battery.plan_subjects import EXPORTER, Subject, plan_of

from saishiki.runtime.errors import BackendError

DRY_RUN = Options(dry_run=True)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)


def rows_of(subject: Subject) -> list[Row]:
    return list(every_operation(lambda options: subject, DRY_RUN))


def test_the_first_of_each_kind_is_right_by_both_libraries_and_times_nothing(plan_subject: Subject) -> None:
    plan, *rows = rows_of(plan_subject)
    assert (plan["network"], plan["backend"]) == ("animediffusion", "cuda-cudnn")
    assert {(row["op"], row["by"]) for row in rows} >= {
        ("convolution", "triton"),
        ("norm_statistics", "triton"),
        ("norm_apply", "triton"),
        *(("matmul", library) for library in ("triton", "cudnn")),
        *(("attention", library) for library in ("triton", "cudnn")),
    }
    assert all(0 < row["error"] <= row["budget"] and row["modelled_us"] > 1 for row in rows)
    assert not any(name.startswith(("p50", "samples")) for row in rows for name in row)


def test_operations_that_are_wrong_are_red(plan_subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = OpBench.truth

    def other(self: OpBench, op: Any) -> dict[str, Any]:
        return {name: array * (1 + 2 * BUDGET) for name, array in truth(self, op).items()}

    monkeypatch.setattr(OpBench, "truth", other)
    assert all(row["red"] for row in rows_of(plan_subject)[1:])


def test_operations_that_nothing_runs_say_why(plan_subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise BackendError("no kernel runs it")

    monkeypatch.setattr(plan_ops, "launches_of", refuse)
    _, *rows = rows_of(plan_subject)
    assert {row["by"]: row.get("unavailable") for row in rows} == {"triton": "no kernel runs it", "cudnn": None}


@pytest.mark.parametrize(
    ("got", "error"),
    [
        ([1.0, 2.0, np.nan], 0.0),
        ([1.0, 2.2, np.nan], 0.2 / 5**0.5),
        ([1.0, np.nan, np.nan], np.inf),
        ([1.0, 2.0, 0.0], np.inf),
        ([1.0, np.inf, np.nan], np.inf),
    ],
    ids=["equal", "off", "left out", "too much", "overflow"],
)
def test_error_is_of_what_is_to_be_written_and_nothing_else(got: list[float], error: float) -> None:
    assert error_of(np.array(got), np.array([1.0, 2.0, np.nan])) == pytest.approx(error)


def test_sums_are_by_kind_and_of_whole_forwards() -> None:
    def row(place: int, op: str, by: str, us: float) -> Row:
        return {"place": place, "op": op, "by": by, "p50_us": us, "modelled_us": 2.0}

    rows = [row(0, "convolution", "triton", 5.0), row(0, "convolution", "cudnn", 3.0), row(1, "pool", "triton", 1.0)]
    found = {(r["op"], r["by"]): (r["launches"], r["us"], r["modelled_us"]) for r in sums_of([*rows, {"red": True}])}
    assert found == {
        ("convolution", "triton"): (1, 5.0, 2.0),
        ("convolution", "cudnn"): (1, 3.0, 2.0),
        ("pool", "triton"): (1, 1.0, 2.0),
        ("all", "triton"): (2, 6.0, 4.0),
        ("all", "cudnn, else triton"): (2, 4.0, 4.0),
    }


def test_plans_need_the_exporter(plan_subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("battery.plan_subjects.importlib.util.find_spec", lambda name: None)
    with pytest.raises(SkippedError, match=" and ".join(EXPORTER)):
        plan_of(torch.nn.Identity(), plan_subject.loaded.signature, {})
