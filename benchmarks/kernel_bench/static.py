"""What is known of the kernels without a GPU: counted work, rooflines, and what the compiler made of each variant."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from occupancy import occupancy
from roofline import GPUS, roofline_on

from kernel_bench.cases import CASES, KernelCase, details_of
from saishiki.runtime.backends.cubins import CubinEntry, read_cubin_index

Row = dict[str, Any]


def case_row(case: KernelCase) -> Row:
    """Counted work, and the least time on each GPU."""
    work = case.work()
    rooflines = {gpu.name: roofline_on(gpu, work) for gpu in GPUS}
    return {
        "op": case.op,
        "case": case.name,
        **details_of(case),
        **asdict(work),
        "roofline": {name: {"us": round(least.us, 2), "bound": least.bound} for name, least in rooflines.items()},
    }


def cubin_row(entry: CubinEntry) -> Row:
    """What one multiprocessor holds of a compiled kernel."""
    fits = occupancy(entry.target, threads=entry.threads, registers=entry.registers, shared_bytes=entry.shared_bytes)
    return {
        "name": entry.name,
        "target": entry.target,
        "threads": entry.threads,
        "registers": entry.registers,
        "shared_bytes": entry.shared_bytes,
        "spill_bytes": entry.spill_bytes,
        "blocks_per_multiprocessor": fits.blocks,
        "occupancy": round(fits.share, 3),
        "limited_by": list(fits.limits),
    }


def static_report(cases: Iterable[KernelCase] = CASES) -> Row:
    """All that ``bench_kernels.py`` can say without a GPU."""
    index = read_cubin_index()
    return {
        "measured": False,
        "peaks": [asdict(gpu) for gpu in GPUS],
        "compiled_by": f"triton {index.triton}",
        "cases": [case_row(case) for case in cases],
        "cubins": [cubin_row(entry) for entry in index.cubins],
    }
