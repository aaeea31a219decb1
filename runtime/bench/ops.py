"""The operations of a bundle's plans: counted and modelled for every plan, and timed where a module runs by one."""

from collections.abc import Callable, Iterator, Mapping

from saishiki.runtime.backends import Module
from saishiki.runtime.backends.plans import BACKEND, read_plan
from saishiki.runtime.backends.protocol import TimesOps
from saishiki.runtime.bench.pictures import draw_inputs
from saishiki.runtime.bench.schema import PlannedOp, PlanResult
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.manifest import EngineEntry
from saishiki.runtime.plan import Plan, lay_out
from saishiki.runtime.plan.extents import Extents
from saishiki.runtime.plan.ops import AnyOp
from saishiki.runtime.plan.time_model import GPUS, modelled_s
from saishiki.runtime.signature import Profile, Signature, Sizes, profiles_for

Samples = Mapping[AnyOp, tuple[float, ...]]
"""Milliseconds."""


def as_written(plan: Plan) -> Plan:
    """The plan itself: what a file says, before anything is known of a GPU."""
    return plan


def planned_modules(bundle: Bundle) -> tuple[str, ...]:
    """The names of the modules that have a plan."""
    return tuple(name for name in bundle.manifest.modules if _plans_of(bundle, name))


def _plans_of(bundle: Bundle, module: str) -> list[EngineEntry]:
    return [engine for engine in bundle.module(module).engines if engine.backend == BACKEND]


def plan_results(bundle: Bundle, module: str, on_gpu: Callable[[Plan], Plan] = as_written) -> Iterator[PlanResult]:
    """A module's plan at the sizes of each profile; raises as reading the plan does.

    Args:
        on_gpu: what a plan becomes where it is run.
    """
    entry = bundle.module(module)
    plan = on_gpu(read_plan(bundle, module, _plans_of(bundle, module)[0].key.precision))
    for sizes in tuned_sizes(entry.signature, bundle.manifest.profiles):
        yield _result(bundle, module, plan, sizes, {})


def timed_plans(bundle: Bundle, modules: Mapping[str, Module]) -> tuple[PlanResult, ...]:
    """The plans of loaded modules that run by one, with the times of each operation, at sizes they are tuned for."""
    return tuple(
        _result(bundle, name, module.plan, sizes, module.ops_ms(**draw_inputs(module.signature, sizes)))
        for name, module in modules.items()
        if isinstance(module, TimesOps)
        for sizes in tuned_sizes(module.signature, bundle.manifest.profiles)
    )


def _result(bundle: Bundle, module: str, plan: Plan, sizes: Sizes, taken: Samples) -> PlanResult:
    extents = plan.extents(bundle.module(module).signature, sizes)
    arena = lay_out(plan, extents)
    return PlanResult(
        module=module,
        sha256=_plans_of(bundle, module)[0].file.sha256,
        dtype=plan.dtype,
        sizes=sizes,
        arena_bytes=arena.nbytes,
        arena_least_bytes=arena.least_bytes,
        ops=tuple(_planned(op, plan, extents, taken.get(op, ())) for op in plan.ops),
    )


def _planned(op: AnyOp, plan: Plan, extents: Extents, samples_ms: tuple[float, ...]) -> PlannedOp:
    cost = op.cost(extents)
    return PlannedOp(
        kind=kind_of(op),
        reads=tuple(name for name in op.reads() if name not in plan.weights),
        writes=op.writes(),
        flops=cost.flops,
        bytes=cost.bytes,
        modelled_us={gpu.name: round(1e6 * modelled_s(op, extents, gpu), 3) for gpu in GPUS},
        samples_us=tuple(1e3 * ms for ms in samples_ms),
    )


def kind_of(op: AnyOp) -> str:
    """What an operation is called in a plan's file."""
    return str(op.__struct_config__.tag)


def tuned_sizes(signature: Signature, profiles: tuple[Profile, ...]) -> tuple[Sizes, ...]:
    """The distinct sizes that a module is tuned for."""
    found = [profile.opt for profile in profiles_for(signature, profiles)]
    return tuple({tuple(sorted(sizes.items())): sizes for sizes in found}.values())
