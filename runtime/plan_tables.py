"""Tables of plans: their launches counted, modelled, and timed where somebody ran them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

from rich.markup import escape
from rich.table import Table

from saishiki.runtime.bench.ops import as_written, plan_results, planned_modules
from saishiki.runtime.bench.schema import PlannedOp, PlanResult, read_report
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BackendError, SaishikiError
from saishiki.runtime.plan import Plan

ALL = "*"
"""Instead of a module's name: all modules, a line for each kind of launch."""


def plan_tables(bundle: Bundle, module: str, on_gpu: Callable[[Plan], Plan] = as_written) -> Iterator[Table]:
    """Tables of a module's plan, launch by launch, or of all plans; at the sizes that the bundle is tuned for.

    Args:
        on_gpu: what a plan becomes where it is run; default: it is counted as it is written.

    Raises ``BackendError`` where there is no such plan.
    """
    for name in _chosen(bundle, module):
        for plan in plan_results(bundle, name, on_gpu):
            yield plan_table(plan, by_kind=module == ALL)


def measured_tables(bundle: Bundle, module: str, report: Path) -> Iterator[Table]:
    """The same of plans as they were run and timed, by a result of ``saishiki bench``.

    Raises ``SaishikiError`` where the result has no times of these plans.
    """
    known = {(plan.module, plan.sha256) for name in _chosen(bundle, module) for plan in plan_results(bundle, name)}
    found = [
        (runner.name, plan)
        for runner in read_report(report).runners
        for plan in runner.plans
        if (plan.module, plan.sha256) in known
    ]
    if not found:
        names = ", ".join(dict.fromkeys(name for name, _ in sorted(known)))
        raise SaishikiError(
            f"{report}: it has no times of the plans of {names} in {bundle.path}; "
            "measure them on a GPU with: saishiki bench BUNDLE --backends cuda --output FILE"
        )
    for runner, plan in found:
        yield plan_table(plan, by_kind=module == ALL, runner=runner)


def _chosen(bundle: Bundle, module: str) -> tuple[str, ...]:
    """The modules whose plans are meant; raises ``BackendError`` where there are none."""
    planned = planned_modules(bundle)
    if not planned or (module != ALL and module not in planned):
        has = f"it has plans of {', '.join(planned)}" if planned else "it has no plans at all"
        raise BackendError(
            f"{bundle.path}: no plan{'' if module == ALL else f' of {module}'}; {has}; "
            f"export again with cuda among the targets: {bundle.manifest.export_command}"
        )
    return planned if module == ALL else (module,)


def plan_table(plan: PlanResult, *, by_kind: bool, runner: str | None = None) -> Table:
    """One plan, a line for each launch or for each kind of launch.

    Args:
        runner: who took the times of its operations; None where nobody did.
    """
    at = ", ".join(f"{symbol} {size}" for symbol, size in plan.sizes.items())
    title = (
        f"{plan.module} in {plan.dtype}{f' at {at}' if at else ''}: {len(plan.ops)} launches, arena "
        f"{plan.arena_bytes / 1e6:.1f} MB (at least {plan.arena_least_bytes / 1e6:.1f}); times are modelled, "
        + ("not measured" if runner is None else f"those of {runner} measured, each launch alone")
    )
    gpus = tuple(plan.ops[0].modelled_us) if plan.ops else ()
    names = (*gpus, *([] if runner is None else [runner]))
    columns = ("launches" if by_kind else "launch", "GFLOP", "MB", *(f"{name}, µs" for name in names))
    table = Table(*map(escape, columns), title=escape(title), title_justify="left")
    for what, ops in _by_kind(plan.ops) if by_kind else [(_described(op), [op]) for op in plan.ops]:
        table.add_row(escape(what), *_cells(ops, gpus, timed=runner is not None))
    table.add_section()
    table.add_row("all", *_cells(plan.ops, gpus, timed=runner is not None))
    return table


def _by_kind(ops: Sequence[PlannedOp]) -> list[tuple[str, list[PlannedOp]]]:
    kinds: dict[str, list[PlannedOp]] = {}
    for op in ops:
        kinds.setdefault(op.kind, []).append(op)
    return [(f"{len(group)} {kind}", group) for kind, group in kinds.items()]


def _described(op: PlannedOp) -> str:
    return f"{op.kind} {', '.join(op.reads)} -> {', '.join(op.writes)}"


def _cells(ops: Sequence[PlannedOp], gpus: Sequence[str], *, timed: bool) -> list[str]:
    counted = f"{sum(op.flops for op in ops) / 1e9:.2f}", f"{sum(op.bytes for op in ops) / 1e6:.1f}"
    times = [sum(op.modelled_us[gpu] for op in ops) for gpu in gpus]
    taken = [sum(median(op.samples_us) for op in ops)] if timed else []
    return [*counted, *(f"{us:.1f}" for us in (*times, *taken))]
