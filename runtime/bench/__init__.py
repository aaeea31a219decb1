"""How fast a bundle is on this machine, measured without PyTorch: the command ``saishiki bench``."""

from saishiki.runtime.bench.compare import Comparison, compare
from saishiki.runtime.bench.plan import FULL, QUICK, Plan
from saishiki.runtime.bench.plot import write_plot
from saishiki.runtime.bench.runners import runners_here, runners_named
from saishiki.runtime.bench.schema import Report, json_from_report, read_report
from saishiki.runtime.bench.session import run_bench
from saishiki.runtime.bench.target import check_target

__all__ = [
    "FULL",
    "QUICK",
    "Comparison",
    "Plan",
    "Report",
    "check_target",
    "compare",
    "json_from_report",
    "read_report",
    "run_bench",
    "runners_here",
    "runners_named",
    "write_plot",
]
