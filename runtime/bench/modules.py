"""Every module alone, at the smallest, the tuned and the largest sizes of each of its profiles."""

from collections.abc import Callable, Mapping

from saishiki.runtime.backends import Module
from saishiki.runtime.backends.protocol import Clock, TimesItself
from saishiki.runtime.bench.images import row_of
from saishiki.runtime.bench.measure import collect_ms, timed
from saishiki.runtime.bench.pictures import draw_inputs
from saishiki.runtime.bench.plan import Plan
from saishiki.runtime.bench.schema import Row
from saishiki.runtime.signature import Array, Profile, Signature, Sizes, profiles_for


def module_rows(modules: Mapping[str, Module], profiles: tuple[Profile, ...], plan: Plan) -> tuple[Row, ...]:
    """A row per module and sizes: by device events where the module has them, else by the host's clock, with copies."""
    return tuple(
        _module_row(name, module, sizes, plan)
        for name, module in modules.items()
        for sizes in sizes_of(module.signature, profiles)
    )


def sizes_of(signature: Signature, profiles: tuple[Profile, ...]) -> tuple[Sizes, ...]:
    """The distinct sizes at the corners of a module's profiles."""
    corners = [corner for profile in profiles_for(signature, profiles) for corner in profile.corners()]
    return tuple({tuple(sorted(sizes.items())): sizes for sizes in corners}.values())


def _module_row(name: str, module: Module, sizes: Sizes, plan: Plan) -> Row:
    inputs = draw_inputs(module.signature, sizes)
    run, clock = _run_of(module, inputs)
    collected = collect_ms(run, plan.module)
    return row_of("module", sizes, list(collected.samples), part=name, clock=clock, warmup=collected.warmup)


def _run_of(module: Module, inputs: dict[str, Array]) -> tuple[Callable[[], float], Clock]:
    if isinstance(module, TimesItself):
        return lambda: module.device_ms(**inputs), "device"
    return timed(lambda: module(**inputs)), "host"
