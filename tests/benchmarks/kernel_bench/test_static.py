"""The report without a GPU, the one in ``benchmarks/results``, and the figures in ``kernels/README.md``."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from kernel_bench.cases import CASES, AttentionCase, SplitCase
from kernel_bench.readme import MARKED, README, markdown, with_figures
from kernel_bench.static import case_row, cubin_row, static_report

from saishiki.runtime.backends.cubins import read_cubin_index

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results" / "cpu" / "bench_kernels.json"
REGENERATE = "python benchmarks/bench_kernels.py --static --readme --output benchmarks/results/cpu/bench_kernels.json"


@pytest.fixture(scope="module")
def report() -> Any:
    return json.loads(json.dumps(static_report()))


def test_the_saved_report_is_that_of_these_kernels(report: Any) -> None:
    saved = json.loads(RESULTS.read_text())
    assert saved.pop("environment")["commit"]
    assert saved == report, REGENERATE


def test_the_readme_shows_the_saved_figures() -> None:
    text = README.read_text()
    assert with_figures(text, json.loads(RESULTS.read_text())) == text, REGENERATE


def test_the_readme_shows_figures_of_every_op(report: Any) -> None:
    shown = with_figures(README.read_text(), report)
    marks = [op for found in MARKED.finditer(shown) for op in found[2].split(", ")]
    assert sorted(marks) == sorted({row["op"] for row in report["cases"]})
    assert {row["name"] for row in report["cubins"]} <= set(shown.replace("`", " ").split())


def test_a_changed_figure_shows_in_the_readme(report: Any) -> None:
    text = with_figures(README.read_text(), report)
    report = json.loads(json.dumps(report))
    for row in report["cubins"]:
        row["registers"] += 1
    assert with_figures(text, report) != text
    assert with_figures(with_figures(text, report), report) == with_figures(text, report)


def test_the_report_says_that_nothing_was_measured(report: Any) -> None:
    assert report["measured"] is False
    assert "p50" not in json.dumps(report)


def test_every_kernel_is_in_the_report(report: Any) -> None:
    index = read_cubin_index()
    assert [(row["name"], row["target"]) for row in report["cubins"]] == [
        (entry.name, entry.target) for entry in index.cubins
    ]
    assert all(row["blocks_per_multiprocessor"] >= 1 for row in report["cubins"])


def test_more_registers_are_less_occupancy() -> None:
    entry = replace(read_cubin_index().cubins[0], threads=128, shared_bytes=0, target="sm90")
    few, many = (cubin_row(replace(entry, registers=registers)) for registers in (32, 255))
    assert (few["occupancy"], many["occupancy"]) == (1.0, 0.125)


def test_a_roofline_of_known_size() -> None:
    # 2 x 4096 tokens, 5 heads of 64, 256 keys each: 4 x 64 products per query, key and head.
    row = case_row(AttentionCase("test", 2, 64, 64, "foreground", 5, 64, 512))
    assert row["matrix_flops"] == 2 * 4096 * 5 * 256 * 256
    assert row["mixed_share"] == 0
    q, kv = 2 * 4096 * 320 * 2, 2 * 2 * 256 * 320 * 2
    assert row["nbytes"] == 2 * q + kv + 2 * 4096 * 4
    assert row["roofline"]["RTX 4090"] == {
        "us": pytest.approx(row["matrix_flops"] / 165.2e6, abs=0.01),
        "bound": "matrix",
    }


@pytest.mark.parametrize(
    "case", [case for case in CASES if isinstance(case, SplitCase)], ids=lambda case: f"{case.op}-{case.name}"
)
def test_masks_are_what_their_names_say(case: Any) -> None:
    share = case.foreground.mean()
    mixed = case.regions.mixed_share
    if case.mask == "foreground":
        assert (share, mixed) == (1.0, 0.0)
        return
    assert share == pytest.approx(1 / 8, abs=0.01) if case.mask == "lines" else 0.3 < share < 0.4
    if case.sort:
        # In order, one tile of a row holds both regions, and of the projection's the tiles between rows do, too.
        tiles = -(-case.tokens // case.regions.block)
        assert mixed <= 2 / tiles or case.regions.background.all()
    else:
        assert mixed > 0.6


def test_a_kernel_of_some_targets_has_dashes_for_the_others(report: Any) -> None:
    rows = [row for row in report["cubins"] if row["name"] == "convolution_norm_128x128_fp16"]
    assert {row["target"] for row in rows} == {"sm80", "sm86", "sm89"}
    text = with_figures(README.read_text(), report)
    (line,) = (line for line in text.splitlines() if line.startswith("| `convolution_norm_128x128_fp16` |"))
    registers = [str(row["registers"]) for row in rows]
    assert " / ".join([*registers, "-", "-"]) in line
    assert line.endswith("| none |")


def test_markdown_of_a_table() -> None:
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
