"""The constants of any plan's model: the gap between launches in a graph, copy bandwidth, an fp16 matrix product."""

from collections.abc import Iterator

import torch
from battery.clock import captured, latency
from battery.part import Options, Row

KERNELS = 200


def measure(options: Options) -> Iterator[Row]:
    """One row each; in a dry run without the rates."""
    yield _gap(options)
    yield _copy(options, 1 << (20 if options.dry_run else 31))
    yield _product(options, 64 if options.dry_run else 8192)


def _gap(options: Options) -> Row:
    """Of kernels that do next to nothing, each behind the last: what a launch costs besides its work."""
    x = torch.zeros(1, device=options.device)

    def launches() -> None:
        for _ in range(KERNELS):
            x.add_(1.0)

    row = latency(captured(launches, options), options)
    each = {"us_each": round(1e3 * row["p50_ms"] / KERNELS, 4)} if row else {}
    return {"what": "graph gap", "kernels": KERNELS, **row, **each}


def _copy(options: Options, n: int) -> Row:
    source = torch.randint(0, 255, (n,), dtype=torch.uint8, device=options.device)
    target = torch.empty_like(source)
    row = latency(lambda: target.copy_(source), options)
    rate = {"gb_per_s": round(2 * n / row["p50_ms"] / 1e6, 1)} if row else {}
    return {"what": "copy", "bytes": 2 * n, **row, **rate}


def _product(options: Options, m: int) -> Row:
    """Of random numbers: on zeros a GPU is faster."""
    a, b = (torch.randn(m, m, device=options.device).half() for _ in range(2))
    row = latency(lambda: a @ b, options)
    rate = {"tflops": round(2 * m**3 / row["p50_ms"] / 1e9, 1)} if row else {}
    return {"what": "fp16 matrix product", "size": m, **row, **rate}
