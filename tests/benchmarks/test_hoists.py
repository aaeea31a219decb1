"""Counted work of a step: against torch's own counter, and against what the specifications of the kits state."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import hoists
import pytest
import torch
from graph_roofline.node_work import work_of
from graph_roofline.sized_graph import SizedNode, SizedTensor
from hoist_work.counting import StepWork, eager_gflop, give_weights, step_work
from hoist_work.ladder import RUNGS, hoists_of, ladder
from hoist_work.published import PublishedStep
from hoist_work.readme import README, table, with_figures
from random_weights.colorizediffusion import tiny_config
from roofline import Work
from torch.utils.flop_counter import FlopCounterMode

from saishiki.models.colorizediffusion import CONFIGS, Conditioning, Split, UNet
from saishiki.runtime.pipelines.colorizediffusion import Generation, Guidance, Mode, variant_of

RESULT = Path(hoists.__file__).parent / "results" / "cpu" / "hoists.json"
TINY_SIZES = {"batch": 1, "height": 128, "width": 128}

# "Full-size numbers" of the kits' specifications: GFLOP of one forward.
STATED_GFLOP: list[tuple[Generation, Mode, int, float]] = [
    ("v1", "vanilla", 512, 821.7),
    ("v1", "background", 768, 2245.3),
    ("v2", "background", 512, 1014.8),
    ("v2", "full", 768, 2797.7),
]


def meta_unet(generation: Generation, *, tiny: bool) -> UNet:
    with torch.device("meta"):
        return UNet(tiny_config(generation) if tiny else CONFIGS[generation]).eval()


def published_gflop(unet: UNet, mode: Mode, guidance: Guidance, size_px: int) -> float:
    variant = variant_of(unet.config.generation, mode, guidance, merge=False)
    sizes = {"batch": 1, "height": size_px, "width": size_px}
    return eager_gflop(PublishedStep(unet, variant, mode), sizes)


@pytest.fixture(scope="module")
def full_size() -> dict[str, UNet]:
    return {generation: meta_unet(generation, tiny=False) for generation in CONFIGS}


@pytest.mark.parametrize(("generation", "mode", "size_px", "stated"), STATED_GFLOP)
def test_published_forward_is_what_the_specification_states(
    full_size: dict[str, UNet], generation: Generation, mode: Mode, size_px: int, stated: float
) -> None:
    assert published_gflop(full_size[generation], mode, "none", size_px) == pytest.approx(stated, abs=0.051)


def test_published_forward_of_v15_with_both_loras_is_what_the_specification_states(full_size: dict[str, UNet]) -> None:
    unet, config = full_size["v1.5"], CONFIGS["v1.5"]
    variant = variant_of("v1.5", "background", "none", merge=False)
    hints = [
        torch.zeros(spec.shape({"batch": 1, "height": 512, "width": 512}), device="meta")
        for spec in PublishedStep(unet, variant, "background").signature.inputs
        if spec.name.startswith("hint_")
    ]
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        split = Split(torch.zeros(1, 1, 64, 64), lora_fg=True, lora_bg=True)
        context = torch.zeros(1, 2 * config.tokens, config.context_dim)
        unet(torch.zeros(1, 4, 64, 64), torch.zeros(1), hints, context, conditioning=Conditioning(split=split))
    assert counter.get_total_flops() / 1e9 == pytest.approx(883.6, abs=0.051)


def test_published_rows_of_guidance_are_forwards_of_their_own(full_size: dict[str, UNet]) -> None:
    unet = full_size["v1"]
    one, two = (published_gflop(unet, "vanilla", guidance, 512) for guidance in ("none", "reference"))
    assert two == pytest.approx(2 * one, rel=1e-6)


def counted_rungs(generation: Generation, mode: Mode, rungs: set[str]) -> dict[str, StepWork]:
    unet = meta_unet(generation, tiny=True)
    give_weights(unet)
    modules = ladder(unet, mode, "reference")
    return {rung: step_work(module, TINY_SIZES) for rung, module in modules if rung in rungs}


@pytest.mark.slow
def test_graph_counts_as_torch_does() -> None:
    (work,) = counted_rungs("v1", "vanilla", {"graph"}).values()
    eager = published_gflop(meta_unet("v1", tiny=True), "vanilla", "reference", TINY_SIZES["height"])
    assert work.matrix_gflop == pytest.approx(eager, rel=1e-9)


@pytest.mark.slow
def test_hoisted_keys_and_values_are_what_is_saved() -> None:
    works = counted_rungs("v1", "background", {"time", "kv"})
    config = tiny_config("v1")
    # Keys and values of both regions, of the conditional row: that without a context has zeros in any case.
    saved = sum(2 * 2 * 2 * config.tokens * config.context_dim * width for width in config.transformer_widths)
    assert works["time"].matrix_gflop - works["kv"].matrix_gflop == pytest.approx(saved / 1e9, rel=1e-6)


def test_hoists_of_a_variant_are_those_that_concern_it() -> None:
    vanilla, full = (variant_of("v2", mode, "reference", merge=False) for mode in ("vanilla", "full"))
    assert hoists_of(vanilla, is_styled=False) == ("time", "kv", "guidance", "prefix")
    assert hoists_of(full, is_styled=True) == tuple(list(RUNGS)[3:])
    assert hoists_of(variant_of("v1", "vanilla", "none", merge=False), is_styled=False) == ("time", "kv")


def test_at_sizes_leaves_no_symbols() -> None:
    module = PublishedStep(meta_unet("v1", tiny=True), variant_of("v1", "vanilla", "reference", merge=False), "vanilla")
    fixed = module.signature.at(TINY_SIZES)
    assert fixed.symbols == ()
    assert [spec.shape({}) for spec in fixed.inputs] == [spec.shape(TINY_SIZES) for spec in module.signature.inputs]


def test_step_work_is_in_fp16_bytes() -> None:
    assert StepWork.of(Work(3 * 10**9, 10**9, 8 * 10**6, 1), 5) == StepWork(3.0, 1.0, 4.0, 5)


def tensor(name: str, *shape: int) -> SizedTensor:
    return SizedTensor(name, shape, 4, False, False)


def op_of_ours(op: str, *inputs: SizedTensor, out: SizedTensor, **attributes: Any) -> SizedNode:
    return SizedNode("node", f"saishiki::{op}", inputs, (out,), attributes)


def test_ops_of_ours_count_as_their_kernels() -> None:
    q, kv, mask, out = tensor("q", 2, 10, 12), tensor("k", 2, 6, 12), tensor("m", 2, 10), tensor("o", 2, 10, 12)
    single = op_of_ours("MaskedSplitCrossAttention", q, kv, replace(kv, name="v"), mask, out=out, heads=3)
    merging = replace(single, op="saishiki::MaskedSplitCrossAttentionMerge")
    # Every token meets three of six keys, in q k^T and in the product with v.
    assert work_of(single).matrix_flops == 2 * 2 * (2 * 10 * 3) * 12
    assert work_of(merging).matrix_flops == 2 * work_of(single).matrix_flops
    weights = tensor("w_fg", 7, 12), tensor("w_bg", 7, 12)
    projection = op_of_ours("SplitProjection", q, *weights, mask, out=tensor("o", 2, 10, 7))
    assert work_of(projection).matrix_flops == 2 * 2 * 10 * 12 * 7
    assert work_of(projection).nbytes == 4 * (2 * 10 * 12 + 2 * 7 * 12 + 2 * 10 + 2 * 10 * 7)


def test_an_unknown_op_of_ours_is_an_error() -> None:
    with pytest.raises(ValueError, match="no count for the operator saishiki::Nothing"):
        work_of(op_of_ours("Nothing", tensor("q", 1), out=tensor("o", 1)))


@pytest.fixture(scope="module")
def counted() -> dict[tuple[str, str, int], dict[str, float]]:
    if not RESULT.is_file():
        pytest.skip(f"needs {RESULT}: python benchmarks/hoists.py --output {RESULT}")
    cases = json.loads(RESULT.read_text())["cases"]
    return {hoists.name_of(case): {row["rung"]: row["matrix_gflop"] for row in case["rows"]} for case in cases}


def test_stored_counts_are_of_the_published_step(counted: Any, full_size: dict[str, UNet]) -> None:
    assert counted
    for (generation, mode, size_px), gflop in counted.items():
        expected = published_gflop(full_size[generation], mode, "reference", size_px)
        assert gflop["published"] == pytest.approx(expected, abs=1e-3)


def test_the_readme_shows_the_stored_counts() -> None:
    text, result = README.read_text(), json.loads(RESULT.read_text())
    assert "<!-- figures of hoists.py -->" in text
    assert with_figures(text, result) == text, f"python benchmarks/hoists.py --readme {RESULT}"
    assert "2029.9" in table(result)


def test_stored_rungs_never_compute_more_than_the_one_before(counted: Any) -> None:
    for case, gflop in counted.items():
        steps = list(gflop.values())
        assert steps == sorted(steps, reverse=True), case
        assert set(RUNGS) - set(gflop) <= {"masks", "style", "warp"}, case
        # What a mask chooses is no matrix product; every other rung saves some.
        same = {rung for rung, before, after in zip(list(gflop)[1:], steps, steps[1:], strict=False) if before == after}
        assert same <= {"masks", "graph"}, case


# Percent of one published forward: q / k+v / attention products of cross-attention, a row that skips all of it, k+v of
# the warp modules, and the prefix; "Full-size numbers", and "Exact prefix sharing" of the section before.
STATED_SHARES = {
    ("v1", "vanilla", 512): (1.56, 1.59, 1.44, 6.15, 0.0),
    ("v1", "vanilla", 768): (1.32, 0.60, 1.22, 4.47, 0.0),
    ("v2", "full", 512): (2.54, 2.59, 2.33, 8.73, 1.36),
    ("v2", "full", 768): (2.08, 0.94, 1.90, 5.95, 1.11),
}
STATED_PREFIX = {512: 4.98, 768: 7.00}


def percent_saved(gflop: dict[str, float], first: str, last: str) -> float:
    """Of the published step of two rows."""
    return 100 * (gflop[first] - gflop[last]) / gflop["published"]


@pytest.mark.parametrize("case", STATED_SHARES, ids=str)
def test_stored_savings_follow_from_the_specification(counted: Any, case: tuple[str, str, int]) -> None:
    if case not in counted:
        pytest.skip(f"{RESULT.name} does not hold {case}: python benchmarks/hoists.py --output {RESULT}")
    q, kv, products, row, warp_kv = STATED_SHARES[case]
    # With a mask the published row computes both regions' queries and attention for every token.
    regions = (q + products) / 2 if case[1] == "full" else 0.0
    expected = (kv + regions + row) / 2 + warp_kv
    assert percent_saved(counted[case], "published", "guidance") == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("size_px", STATED_PREFIX)
def test_stored_prefix_is_the_share_that_the_specification_states(counted: Any, size_px: int) -> None:
    case = ("v1", "vanilla", size_px)
    if case not in counted:
        pytest.skip(f"{RESULT.name} does not hold {case}: python benchmarks/hoists.py --output {RESULT}")
    shared = STATED_PREFIX[size_px] / 2
    assert percent_saved(counted[case], "guidance", "prefix") == pytest.approx(shared, abs=0.02)


def test_add_case_replaces_its_own_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "hoists.json"
    for size_px, rows in ((512, [1]), (768, [2]), (512, [3])):
        hoists.add_case(path, {"generation": "v2", "mode": "full", "size_px": size_px, "rows": rows})
    cases = json.loads(path.read_text())["cases"]
    assert [(case["size_px"], case["rows"]) for case in cases] == [(512, [3]), (768, [2])]


def test_add_case_refuses_another_file(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"schema": "other/1"}')
    with pytest.raises(ValueError, match=r"expected a result of saishiki\.hoists/1, got 'other/1'"):
        hoists.add_case(tmp_path / "other.json", {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--only", "v3/full"], "expected one of v2/full"), (["--sizes", "100"], "multiples of 64, got 100")],
)
def test_main_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        hoists.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_main_counts_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    works = iter([Work(2 * 10**9, 0, 8 * 10**6, 1), Work(10**9, 0, 4 * 10**6, 1)])
    monkeypatch.setattr(hoists, "ladder", lambda *_: iter([("graph", None), ("prefix", None)]))
    monkeypatch.setattr(hoists, "eager_gflop", lambda *_: 4.0)
    monkeypatch.setattr(hoists, "step_work", lambda *_: StepWork.of(next(works), 7))
    monkeypatch.setattr(hoists, "give_weights", lambda _: None)
    hoists.main(["--only", "v2/full", "--sizes", "512", "--output", str(tmp_path / "h.json")])
    (case,) = json.loads((tmp_path / "h.json").read_text())["cases"]
    assert [(row["rung"], row["matrix_gflop"], row["percent_of_published"]) for row in case["rows"]] == [
        ("published", 4.0, 100.0),
        ("graph", 2.0, 50.0),
        ("prefix", 1.0, 25.0),
    ]
    assert "v2 full, 512x512" in capsys.readouterr().out
