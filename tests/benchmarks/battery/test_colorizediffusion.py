from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import battery.network
import pytest
import torch
from battery import colorizediffusion, colorizediffusion_scene
from battery.colorizediffusion import ABLATION, BUDGETS, COMPILED, PUBLISHED, at_512, at_768, compiled
from battery.colorizediffusion_scene import Recipe, Scene, build_scene, system
from battery.part import Options, Row

DRY_RUN = Options(dry_run=True)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(at_512(DRY_RUN))


def test_ablation_runs_to_its_end_and_times_nothing(rows: list[Row]) -> None:
    assert [row["what"] for row in rows[::2]] == [entry.name for entry in (PUBLISHED, *ABLATION)]
    assert [row["subject"] for row in rows] == ["step", "loop"] * (1 + len(ABLATION))
    assert all(row["error"] <= row["budget"] for row in rows)
    assert {row["precision"] for row in rows} == {"fp32"}
    assert not any("p50_ms" in row or row.get("red") for row in rows)


def test_hoisted_rows_compute_otherwise_and_as_exactly(rows: list[Row]) -> None:
    published, *_, hoisted = (row["error"] for row in rows if row["subject"] == "step")
    assert published == 0
    assert 0 < hoisted < 1e-5


def test_savings_are_added_one_at_a_time() -> None:
    recipes = [entry.recipe for entry in ABLATION if entry.recipe.half]
    for before, after in pairwise(recipes):
        changed = [name for name in vars(after) if getattr(before, name) != getattr(after, name)]
        assert len(changed) == 1 or (before, after) == tuple(recipes[-2:])
    assert [entry.one_graph for entry in ABLATION if entry.recipe.half] == [False] * 6 + [True]


@pytest.mark.slow
def test_compiled_runs_to_its_end() -> None:
    found = list(compiled(DRY_RUN))
    assert [row["what"] for row in found[2::2]] == [entry.name for entry in COMPILED]
    assert all(row["error"] <= row["budget"] and not row.get("red") for row in found)


def test_at_768_is_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(colorizediffusion, "compared", lambda *arguments: asked.append(arguments))
    at_768(DRY_RUN)
    assert asked == [(ABLATION, DRY_RUN, 768)]


@pytest.mark.parametrize("name", ["context", "style", "mask"])
def test_a_change_in_what_conditions_a_step_is_red(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = iter([False, True])

    def changed(options: Options, size_px: int) -> Scene:
        scene = build_scene(options, size_px)
        if next(wrong):
            scene.given[name].mul_(-1.0)
        return scene

    monkeypatch.setattr(colorizediffusion, "build_scene", changed)
    monkeypatch.setattr(colorizediffusion, "PUBLISHED", ABLATION[3])
    (row,) = [next(colorizediffusion.compared((), DRY_RUN, 512))]
    assert row["red"]


def test_every_level_of_the_mask_has_both_regions() -> None:
    with torch.no_grad():
        regions = colorizediffusion_scene._regions(Recipe(), *_network_and_scene())
    shares = {name: float(foreground.mean()) for name, foreground in regions.foreground.items()}
    assert {"in_0", "mid", "out_3", "out_0"} <= shares.keys()
    assert all(0.1 < share < 0.9 for share in shares.values()), shares


def _network_and_scene() -> tuple[Any, Scene]:
    scene = build_scene(DRY_RUN, 512)
    return scene.unet, scene


def test_split_recipe_gives_every_place_an_order_of_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[Any] = []
    reference = colorizediffusion_scene.masked_split_cross_attention_reference

    def noted(q: Any, *rest: Any, order: Any, **how: Any) -> Any:
        orders.append(order)
        return reference(q, *rest, order=order, **how)

    monkeypatch.setattr(colorizediffusion_scene, "masked_split_cross_attention_reference", noted)
    with torch.no_grad():
        for is_split in (False, True):
            system(Recipe(hoisted=True, rows=True, split=is_split), build_scene(DRY_RUN, 512), DRY_RUN).step()
    assert orders[:16] == [None] * 16
    assert all(torch.equal(order.sort(dim=1).values[0], torch.arange(order.shape[1])) for order in orders[16:])


def test_norms_recipe_uses_our_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    reference = battery.network.group_norm_silu_reference

    def counted(x: Any, *arguments: Any, **how: Any) -> Any:
        calls.append(x.shape[1])
        return reference(x, *arguments, **how)

    monkeypatch.setattr(battery.network, "group_norm_silu_reference", counted)
    with torch.no_grad():
        system(Recipe(norms=True), build_scene(DRY_RUN, 512), DRY_RUN).step()
    # Two in each of 22 residual blocks, and the head's.
    assert len(calls) == 2 * 22 + 1


def test_build_scene_is_the_same_at_every_call() -> None:
    first, second = (build_scene(DRY_RUN, 512) for _ in range(2))
    assert all(torch.equal(first.given[name], second.given[name]) for name in first.given)
    pairs = zip(first.unet.parameters(), second.unet.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_budgets_are_for_every_subject_and_precision() -> None:
    assert BUDGETS.keys() == {(subject, half) for subject in ("step", "loop") for half in (False, True)}
