"""What ``saishiki inspect --plan`` prints: the launches of a bundle's plans, counted and modelled."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from rich.markup import escape
from rich.table import Table

from saishiki.runtime.backends.plans import BACKEND, LoadedPlan, load_plan
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BackendError
from saishiki.runtime.plan import Plan, lay_out
from saishiki.runtime.plan.extents import Extents
from saishiki.runtime.plan.ops import AnyOp
from saishiki.runtime.plan.time_model import GPUS, modelled_s
from saishiki.runtime.signature import Sizes, profiles_for

ALL = "*"
"""Instead of a module's name: all modules, a line for each kind of launch."""


def plan_tables(bundle: Bundle, module: str, on_gpu: Callable[[Plan], Plan] = lambda plan: plan) -> Iterator[Table]:
    """Tables of a module's plan, launch by launch, or of all plans; at the sizes that the bundle is tuned for.

    Args:
        on_gpu: what a plan becomes where it is run; default: it is counted as it is written.

    Raises ``BackendError`` where there is no such plan.
    """
    planned = [
        name
        for name, entry in bundle.manifest.modules.items()
        if any(engine.backend == BACKEND for engine in entry.engines)
    ]
    if not planned or (module != ALL and module not in planned):
        has = f"it has plans of {', '.join(planned)}" if planned else "it has no plans at all"
        raise BackendError(
            f"{bundle.path}: no plan{'' if module == ALL else f' of {module}'}; {has}; "
            f"export again with cuda among the targets: {bundle.manifest.export_command}"
        )
    for name in planned if module == ALL else [module]:
        precision = next(e.key.precision for e in bundle.module(name).engines if e.backend == BACKEND)
        loaded = load_plan(bundle, name, precision)
        loaded = replace(loaded, plan=on_gpu(loaded.plan))
        for profile in profiles_for(loaded.signature, bundle.manifest.profiles):
            yield _table(name, loaded, profile.opt, by_kind=module == ALL)


def _table(name: str, loaded: LoadedPlan, sizes: Sizes, *, by_kind: bool) -> Table:
    extents = loaded.plan.extents(loaded.signature, sizes)
    arena = lay_out(loaded.plan, extents)
    at = ", ".join(f"{symbol} {size}" for symbol, size in sizes.items())
    title = (
        f"{name} in {loaded.plan.dtype}{f' at {at}' if at else ''}: {len(loaded.plan.ops)} launches, arena "
        f"{arena.nbytes / 1e6:.1f} MB (at least {arena.least_bytes / 1e6:.1f}); times are modelled, not measured"
    )
    columns = ("launches" if by_kind else "launch", "GFLOP", "MB", *(f"{gpu.name}, µs" for gpu in GPUS))
    table = Table(*columns, title=escape(title), title_justify="left")
    groups = _by_kind(loaded.plan.ops) if by_kind else [(_described(op, loaded), [op]) for op in loaded.plan.ops]
    for what, ops in groups:
        table.add_row(escape(what), *_cells(ops, extents))
    table.add_section()
    table.add_row("all", *_cells(list(loaded.plan.ops), extents))
    return table


def _by_kind(ops: tuple[AnyOp, ...]) -> list[tuple[str, list[AnyOp]]]:
    kinds: dict[str, list[AnyOp]] = {}
    for op in ops:
        kinds.setdefault(_kind(op), []).append(op)
    return [(f"{len(group)} {kind}", group) for kind, group in kinds.items()]


def _kind(op: AnyOp) -> str:
    return str(op.__struct_config__.tag)


def _described(op: AnyOp, loaded: LoadedPlan) -> str:
    read = [name for name in op.reads() if name not in loaded.plan.weights]
    return f"{_kind(op)} {', '.join(read)} -> {', '.join(op.writes())}"


def _cells(ops: list[AnyOp], extents: Extents) -> list[str]:
    costs = [op.cost(extents) for op in ops]
    times = [sum(modelled_s(op, extents, gpu) for op in ops) for gpu in GPUS]
    counted = f"{sum(cost.flops for cost in costs) / 1e9:.2f}", f"{sum(cost.bytes for cost in costs) / 1e6:.1f}"
    return [*counted, *(f"{seconds * 1e6:.1f}" for seconds in times)]
