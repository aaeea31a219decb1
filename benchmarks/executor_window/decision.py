"""What to build next, from what the battery measured; a number that is missing makes a verdict None, never a guess.

The plan is a static list of launches in one CUDA graph, ten steps: every convolution by cuDNN with bias, time
projection and residual inside, every norm as two launches of group_norm_silu, and the launches between. Its floor::

    plan_ms = steps * (convolutions + norms + gap * (other launches))

convolutions: the best p50 of each layer times its count; norms: the bytes of all norms over the measured rate of their
level; both were timed as launches in a graph, so that their own gaps are in. The work of the other launches (attention,
pooling, sampler) is not counted: it is a floor.

- **stage 2**, the executor of precompiled cuDNN plans: if ``plan_ms`` beats the best of torch, eager in one graph (with
  its norms or ours) and ``torch.compile``, by 5 %.
- **stage 3a**, sums in the epilogue: if on any level the best fused engine takes less than the precompiled one and the
  statistics' share (one of three passes) of the norm behind it.
- **the prologue is a trap**: if on no level the best engine with the norm in front takes less than the precompiled one
  and the rest of the norm (two of three passes).
- **stage 4 starts at the largest level**: if cuDNN does less than 250 TFLOP/s over the 3x3 convolutions there.
- **Triton convolutions suffice without cuDNN**: if on every level they take at most 1 / 0.7 of cuDNN's time.

And of the engine as it is:

- **an image in 15 ms**: the better of its backends, whole loop, by events;
- **ahead of torch.compile**: that beside the compiled loop in one graph, in the process of part ``compiled``.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]

STEPS = 10
MARGIN = 0.95
SLOW_TFLOPS = 250.0
TRITON_SHARE = 0.7
PRECOMPILED, SUMS, PROLOGUE = "residual + bias", "residual + bias + sums", "norm and SiLU before, residual + bias"
CUDNN = ("cudnn first choice", "cudnn best")
CONVOLUTIONS: Mapping[str, tuple[tuple[str, ...], bool]] = {
    "cudnn": (CUDNN, False),
    "cudnn first choice": (CUDNN[:1], False),
    "cudnn, plain": (CUDNN, True),
    "torch": (("torch",), False),
    "torch, plain": (("torch",), True),
}
"""Sums over the network: by which engines, and whether without bias and residual."""
COMPILED = "loop, compiled, one graph"
ENGINE, BESIDE = "image, whole loop", "loop, our engine"
ENGINE_PARTS = ("plan_cudnn", "plan_triton")
GOAL_MS = 15.0
RIVALS = ("loop, one graph", "loop, one graph, our norms", COMPILED)


def decide(parts: Mapping[str, Row]) -> Row:
    """The terms and the verdicts, of results by part."""
    rows = {name: part.get("rows", []) for name, part in parts.items()}
    network = _only(rows.get("window_convs", []), what="network")
    all_convs = {name: _convs_ms(rows, network, *which) for name, which in CONVOLUTIONS.items()}
    convs, norms = all_convs["cudnn"], _norms_ms(rows)
    gaps, rival = _gaps_ms(rows, network), _rival_ms(rows)
    plan = None if None in (convs, norms, gaps) else _rounded(convs + norms + gaps)  # type: ignore[operator]
    tflops = _tflops_by_height(rows.get("window_convs", []))
    largest = tflops[max(tflops)] if tflops else None
    return {
        "steps": STEPS,
        "convolutions_ms": convs,
        "other_convolutions_ms": {name: ms for name, ms in all_convs.items() if name != "cudnn"},
        "norms_ms": norms,
        "gaps_ms": gaps,
        "plan_ms": plan,
        "best_torch_ms": rival,
        "engine_ms": _engine_ms(rows),
        "compiled_over_engine": _ratios(rows),
        "tflops_3x3_by_height": {str(height): rate for height, rate in tflops.items()},
        "verdicts": [
            _stage_2(plan, rival),
            _stage_3a(rows),
            _prologue(rows),
            _stage_4(largest),
            _triton(rows),
            _goal(rows),
            _ahead(rows),
        ],
    }


def _verdict(what: str, value: bool | None, why: str) -> Row:
    return {"what": what, "value": value, "why": why}


def _stage_2(plan: float | None, rival: float | None) -> Row:
    what = f"stage 2: an executor of precompiled cuDNN plans, if the plan beats torch by {1 - MARGIN:.0%}"
    if plan is None or rival is None:
        return _verdict(what, None, f"plan {_ms(plan)}, best torch {_ms(rival)}")
    return _verdict(what, plan < MARGIN * rival, f"{plan} ms of plan to {rival} ms of torch, {plan / rival:.2f}")


def _ms(value: float | None) -> str:
    return "not measured" if value is None else f"{value} ms"


def _stage_4(tflops: float | None) -> Row:
    what = f"stage 4 starts at the largest level, if cuDNN is under {SLOW_TFLOPS:.0f} TFLOP/s there"
    if tflops is None:
        return _verdict(what, None, "its 3x3 convolutions are not all measured")
    return _verdict(what, tflops < SLOW_TFLOPS, f"{tflops} TFLOP/s")


def _stage_3a(rows: Mapping[str, Sequence[Row]]) -> Row:
    what = "stage 3a: sums in the convolution's epilogue, if that is faster on some level"
    gains = _gains(rows, SUMS, saved=1 / 3)
    return _by_level(what, gains, any(gain > 0 for gain in gains.values()))


def _prologue(rows: Mapping[str, Sequence[Row]]) -> Row:
    what = "the norm in the prologue is a trap, if it is slower on every level"
    gains = _gains(rows, PROLOGUE, saved=2 / 3)
    return _by_level(what, gains, all(gain <= 0 for gain in gains.values()))


def _engine_ms(rows: Mapping[str, Sequence[Row]]) -> dict[str, float]:
    """The image by each backend of our engine that was timed."""
    found = [row for name in ENGINE_PARTS for row in _with(rows.get(name, []), what=ENGINE)]
    return {row["backend"]: row["p50_ms"] for row in found if "p50_ms" in row}


def _ratios(rows: Mapping[str, Sequence[Row]]) -> dict[str, float]:
    """How many times as fast as torch.compile each backend of our engine is."""
    found = _with(rows.get("compiled", []), what=BESIDE)
    return {row["backend"]: row["compiled_over_ours"] for row in found if "compiled_over_ours" in row}


def _goal(rows: Mapping[str, Sequence[Row]]) -> Row:
    what, times = f"our engine makes an image in {GOAL_MS:.0f} ms", _engine_ms(rows)
    told = ", ".join(f"{backend} {ms} ms" for backend, ms in times.items())
    return _verdict(what, min(times.values()) <= GOAL_MS if times else None, told or "it is not measured")


def _ahead(rows: Mapping[str, Sequence[Row]]) -> Row:
    what, ratios = "our engine is ahead of torch.compile", _ratios(rows)
    told = ", ".join(f"{backend} {ratio} times as fast" for backend, ratio in ratios.items())
    return _verdict(what, max(ratios.values()) > 1 if ratios else None, told or "not both are measured in one process")


def _by_level(what: str, gains: Mapping[int, float], value: bool) -> Row:
    told = ", ".join(f"{height}: {gain:+.2f} us" for height, gain in gains.items())
    return _verdict(what, value if gains else None, told or "no such engine is measured on any level")


def _gains(rows: Mapping[str, Sequence[Row]], variant: str, saved: float) -> dict[int, float]:
    """Microseconds a level gains by a variant that saves a share of the norm's time, where all of it is measured."""
    fused, gains = rows.get("window_fused", []), {}
    for height in _heights(fused):
        plain = _best_us(_with(fused, height=height, variant=PRECOMPILED))
        other = _best_us(_with(fused, height=height, variant=variant))
        norm = _best_us(_with(rows.get("window_norms", []), height=height))
        if None not in (plain, other, norm):
            gains[height] = round(plain + saved * norm - other, 3)  # type: ignore[operator]
    return gains


def _triton(rows: Mapping[str, Sequence[Row]]) -> Row:
    what = f"Triton convolutions suffice without cuDNN, if they have {TRITON_SHARE:.0%} of its speed on every level"
    fused, own = rows.get("window_fused", []), rows.get("window_triton", [])
    shares = {}
    for height in _heights(fused):
        cudnn = _best_us(_with(fused, height=height, variant=PRECOMPILED))
        triton = _best_us(_with(own, height=height, variant=PRECOMPILED))
        if cudnn is None or triton is None:
            return _verdict(what, None, f"level {height} is not measured")
        shares[height] = cudnn / triton
    if not shares:
        return _verdict(what, None, "no level is measured")
    told = ", ".join(f"{height}: {share:.0%}" for height, share in shares.items())
    return _verdict(what, min(shares.values()) >= TRITON_SHARE, told)


def _convs_ms(
    rows: Mapping[str, Sequence[Row]], network: Row | None, engines: tuple[str, ...], plain: bool
) -> float | None:
    """All layers' best times by some engines, plain or as the network needs them; None unless every layer has one."""
    layers: dict[str, tuple[int, list[Row]]] = {}
    for row in rows.get("window_convs", []):
        if row.get("what") == "convolution" and (row["variant"] == "plain") is plain and row["engine"] in engines:
            layers.setdefault(row["layer"], (row["count"], []))[1].append(row)
    times = [(count, _best_us(found)) for count, found in layers.values()]
    if network is None or sum(count for count, us in times if us is not None) != network["convolutions"]:
        return None
    return _per_image(sum(count * us for count, us in times if us is not None))


def _norms_ms(rows: Mapping[str, Sequence[Row]]) -> float | None:
    """The bytes of all norms of a level, over the rate measured on it."""
    levels = _only(rows.get("window_norms", []), what="norms of the network")
    if levels is None:
        return None
    total = 0.0
    for height, nbytes in levels["bytes_by_height"].items():
        found = [row for row in _with(rows["window_norms"], height=int(height)) if "p50_us" in row]
        if not found:
            return None
        total += nbytes * min(row["p50_us"] / row["bytes"] for row in found)
    return _per_image(total)


def _gaps_ms(rows: Mapping[str, Sequence[Row]], network: Row | None) -> float | None:
    gap = _only(rows.get("window_constants", []), what="graph gap")
    if network is None or gap is None or "us_each" not in gap:
        return None
    return _per_image(network["other_launches"] * gap["us_each"])


def _rival_ms(rows: Mapping[str, Sequence[Row]]) -> float | None:
    """The best image by torch in fp16; None until torch.compile, the rival to beat, is among them."""
    found = {
        row["what"]: row["p50_ms"]
        for name in ("graph", "compiled")
        for row in rows.get(name, [])
        if row.get("what") in RIVALS and row.get("precision") == "fp16" and "p50_ms" in row
    }
    return min(found.values()) if COMPILED in found else None


def _tflops_by_height(convs: Sequence[Row]) -> dict[int, float | None]:
    """Of cuDNN's best over all 3x3 convolutions of each level; None for a level where one is missing."""
    found = [row for row in convs if row.get("kernel") == 3 and row["variant"] != "plain"]
    return {height: _level_tflops(_with(found, height=height)) for height in _heights(found)}


def _level_tflops(rows: Sequence[Row]) -> float | None:
    layers: dict[str, list[Row]] = {}
    for row in rows:
        layers.setdefault(row["layer"], []).append(row)
    flop_us = [_flops_and_us([row for row in own if row["engine"] in CUDNN]) for own in layers.values()]
    if None in flop_us:
        return None
    flops, us = (sum(pair[i] for pair in flop_us if pair) for i in range(2))
    return round(flops / us / 1e6, 1)


def _flops_and_us(rows: Sequence[Row]) -> tuple[float, float] | None:
    timed = [row for row in rows if "p50_us" in row]
    if not timed:
        return None
    best = min(timed, key=lambda row: row["p50_us"])
    return best["count"] * best["flops"], best["count"] * best["p50_us"]


def _per_image(us_per_step: float) -> float:
    return _rounded(STEPS * us_per_step / 1e3)


def _rounded(ms: float) -> float:
    return round(ms, 3)


def _with(rows: Iterable[Row], **labels: Any) -> list[Row]:
    return [row for row in rows if all(row.get(name) == value for name, value in labels.items())]


def _only(rows: Iterable[Row], **labels: Any) -> Row | None:
    return next(iter(_with(rows, **labels)), None)


def _heights(rows: Iterable[Row]) -> list[int]:
    return sorted({row["height"] for row in rows if "height" in row}, reverse=True)


def _best_us(rows: Iterable[Row]) -> float | None:
    return min((row["p50_us"] for row in rows if "p50_us" in row), default=None)
