"""Counted plans: of small ones, and what the page on plans states of those that were counted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import plan_counts
import pytest
from plan_work.counting import count
from plan_work.denoisers import count_denoisers
from plan_work.docs import DOCS, families_table, with_figures
from random_weights.colorizediffusion import tiny_config

from saishiki.runtime.pipelines.colorizediffusion import GENERATIONS, MODES, variants_of
from saishiki.runtime.plan import Buffer, Plan, WeightSpec
from saishiki.runtime.plan.ops import NormApply, NormInput, NormStatistics, Pool
from saishiki.runtime.plan.plan import PLAN_VERSION
from saishiki.runtime.signature import Signature, TensorSpec

RESULT = Path(plan_counts.__file__).parent / "results" / "cpu" / "plan_counts.json"
ARENA_PER_LEAST = 1.15
WIDTH = 48


def small(channels: int) -> tuple[Plan, Signature]:
    """Pools what is constant, then normalises x."""
    image = ("batch", "height", "width", str(channels))
    signature = Signature(
        inputs=(TensorSpec("x", "float16", image), TensorSpec("map", "float16", image)),
        outputs=(TensorSpec("y", "float16", image),),
        multiples={},
    )
    plan = Plan(
        version=PLAN_VERSION,
        dtype="float16",
        buffers={
            "half": Buffer("float16", ("batch", "height/2", "width/2", str(channels))),
            "statistics": Buffer("float32", ("batch", "4", "2")),
        },
        hoisted={},
        weights={name: WeightSpec("float32", (channels,)) for name in ("w", "b")},
        ops=(
            NormStatistics(NormInput("x"), "statistics", 4, 1e-5),
            NormApply(NormInput("x"), "statistics", "w", "b", "y", silu=True),
            Pool("map", "half"),
        ),
    )
    return plan, signature


def test_count_is_of_all_launches() -> None:
    sizes = {"batch": 2, "height": 128, "width": 96}
    row = count(*small(WIDTH), sizes)
    numbers = 2 * 128 * 96 * WIDTH
    assert row["sizes"] == sizes
    assert (row["launches"], row["once_per_picture"]) == (3, 1)
    assert row["kinds"] == {"norm_statistics": 1, "norm_apply": 1, "pool": 1}
    # Read twice by the norm and once by the pool, written by the norm and, a quarter, by the pool; and small vectors.
    assert row["mb"] == pytest.approx(2 * 4.25 * numbers / 1e6, abs=0.051)
    assert row["arena_mb"] >= row["least_arena_mb"] > 0
    assert row["without_kernel"] == {}
    seconds = 3 * 1.2e-6 + row["mb"] * 1e6 / 4.3e12
    assert row["modelled_ms"]["H200"] == pytest.approx(1e3 * seconds, abs=1e-3)


def test_count_tells_what_no_kernel_computes() -> None:
    row = count(*small(40), {"batch": 1, "height": 2, "width": 2})
    ((reason, times),) = row["without_kernel"].items()
    assert times == 2
    assert "no kernel normalises 40 channels" in reason


def test_sizes_of_a_module_are_distinct() -> None:
    one_row = Signature((TensorSpec("pixels", "float32", ("1", "3", "height", "width")),), (), {})
    assert plan_counts.sizes_of("colorizediffusion-v2", one_row, (512, 768), (1, 2)) == (
        (512, {"height": 512, "width": 512}),
        (768, {"height": 768, "width": 768}),
    )
    deepest = Signature((TensorSpec("map", "float32", ("batch", "positions")),), (), {})
    assert plan_counts.sizes_of("colorizediffusion-v2", deepest, (512,), (2,)) == (
        (512, {"batch": 2, "positions": 64}),
    )
    of_steps = Signature((TensorSpec("t", "float32", ("steps",)),), (), {})
    assert plan_counts.sizes_of("colorizediffusion-v2", of_steps, (512, 768), (1,)) == ((None, {"steps": 20}),)


@pytest.fixture(scope="module")
def stored() -> Any:
    return json.loads(RESULT.read_text())


def test_the_page_on_plans_shows_the_stored_counts(stored: Any) -> None:
    text = DOCS.read_text()
    assert "<!-- figures of plan_counts.py -->" in text
    assert with_figures(text, stored) == text, f"python benchmarks/plan_counts.py --docs {RESULT}"
    changed = json.loads(json.dumps(stored))
    changed["families"]["animediffusion"]["rows"][0]["launches"] += 1
    assert with_figures(text, changed) != text


def test_stored_plans_keep_their_bounds(stored: Any) -> None:
    for family, counted in stored["families"].items():
        for row in counted["rows"]:
            where = f"{family} {row['module']} at {row['sizes']}"
            assert row["least_arena_mb"] <= row["arena_mb"] <= ARENA_PER_LEAST * row["least_arena_mb"], where
            assert sum(row["kinds"].values()) == row["launches"], where
            assert not [why for why in row["without_kernel"] if "normalises" in why], where
    denoisers = [row for row in stored["families"]["animediffusion"]["rows"] if row["module"] == "denoiser"]
    assert {row["launches"] for row in denoisers} == {151}


def test_every_denoiser_was_counted_and_has_its_kernels(stored: Any) -> None:
    for generation in GENERATIONS:
        rows = stored["denoisers"][generation]["rows"]
        wanted = variants_of(generation, MODES[generation], ("both",), merge=True)
        assert [row["module"] for row in rows] == [variant.module_name for variant in wanted]
        assert not any(row["without_kernel"] for row in rows)


@pytest.mark.slow
def test_denoisers_of_a_generation_are_counted() -> None:
    rows = count_denoisers(replace(tiny_config("v1"), head_channels=32), {"batch": 1, "height": 128, "width": 64})
    row = next(rows)
    assert (row["module"], row["side_px"], row["sizes"]["width"]) == ("denoiser_vanilla_both", 128, 64)
    assert row["launches"] > row["once_per_picture"] > 0
    assert row["without_kernel"] == {}


def test_add_rows_replaces_its_own_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "counts.json"
    for kind, name, rows in (
        ("families", "b", [{"n": 1}]),
        ("families", "a", [{"n": 2}]),
        ("denoisers", "b", [{"n": 4}]),
        ("families", "b", [{"n": 3}]),
    ):
        plan_counts.add_rows(path, kind, name, rows)
    held = json.loads(path.read_text())
    assert {name: counted["rows"] for name, counted in held["families"].items()} == {"a": [{"n": 2}], "b": [{"n": 3}]}
    assert held["denoisers"]["b"]["rows"] == [{"n": 4}]


def test_add_rows_refuses_another_file(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"schema": "other/1"}')
    with pytest.raises(ValueError, match=r"expected a result of saishiki\.plan_counts/1, got 'other/1'"):
        plan_counts.add_rows(tmp_path / "other.json", "families", "a", [])


def test_families_table_shows_one_picture() -> None:
    row = count(*small(WIDTH), {"batch": 1, "height": 8, "width": 6}) | {"module": "denoiser", "side_px": 8}
    two = row | {"sizes": row["sizes"] | {"batch": 2}}
    lines = families_table({"a": {"rows": [row, two]}}).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| a `denoiser` | 8 | 3 | 1 | 0.0 |")


def test_main_asks_for_a_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        plan_counts.main([])
    assert ended.value.code == 2
    assert "expected a BUNDLE" in capsys.readouterr().err
