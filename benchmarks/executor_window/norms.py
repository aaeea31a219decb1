"""``group_norm_silu`` on one norm of each level, in TB/s of the bytes that two launches must move.

Rows: ``what`` is ``group_norm_silu``; ``height``, ``channels``, error against fp64 and budget, times of both launches
together, ``tb_per_s``. Inputs are taken in turns, so that they come from the cache only where they fit all together.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from battery.clock import each_us, relative_error, synchronize
from battery.network import prepare_inference
from battery.part import Options, Row

from executor_window.layers import Layers, Norm, animediffusion_layers
from saishiki.kernels.group_norm_silu import group_norm_silu, group_norm_silu_reference

WHAT = "group_norm_silu"
GROUPS, EPS = 32, 1e-5
SETS = 4
FLOOR = 1e-4


def measure(options: Options) -> Iterator[Row]:
    """In a dry run in Triton's interpreter, and the smallest level alone."""
    prepare_inference(options)
    layers = animediffusion_layers(options)
    yield {"what": "norms of the network", "bytes_by_height": bytes_by_height(layers)}
    for norm in commonest_norms(layers)[-1 if options.dry_run else 0 :]:
        yield norm_row(norm, options)


def bytes_by_height(layers: Layers) -> dict[int, int]:
    """Of all norms of each level."""
    total: Counter[int] = Counter()
    for norm, count in layers.norms.items():
        total[norm.height] += count * norm.nbytes
    return dict(total)


def commonest_norms(layers: Layers) -> list[Norm]:
    """Of each level the norm that is there most often."""
    most: dict[int, Norm] = {}
    for norm in sorted(layers.norms, key=lambda norm: -layers.norms[norm]):
        most.setdefault(norm.height, norm)
    return [most[height] for height in sorted(most, reverse=True)]


def norm_row(norm: Norm, options: Options) -> Row:
    """Checked, then timed."""
    torch.manual_seed(0)
    shape = (1, norm.channels, norm.height, norm.width)
    images = [
        torch.randn(shape, device=options.device).half().contiguous(memory_format=torch.channels_last)
        for _ in range(1 if options.dry_run else SETS)
    ]
    weight, bias = (torch.randn(norm.channels, device=options.device) for _ in range(2))
    settings: Any = {"groups": GROUPS, "eps": EPS}
    truth = group_norm_silu_reference(images[0].double(), weight.double(), bias.double(), **settings)
    plain = group_norm_silu_reference(images[0], weight, bias, **settings)
    runs = [partial(group_norm_silu, x, weight, bias, **settings) for x in images]
    out = runs[0]()
    synchronize(options)
    error, budget = relative_error(out, truth), 2 * relative_error(plain, truth) + FLOOR
    row = {
        "what": WHAT,
        "height": norm.height,
        "channels": norm.channels,
        "bytes": norm.nbytes,
        "error": error,
        "budget": budget,
    }
    if not error <= budget:
        return {**row, "red": True}
    times = each_us(runs, options)
    rate = {"tb_per_s": round(norm.nbytes / times["p50_us"] / 1e6, 3)} if times else {}
    return {**row, **times, **rate}
