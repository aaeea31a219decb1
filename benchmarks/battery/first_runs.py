"""TensorRT for RTX compiles kernels on the GPU that it meets: a first image with none of them, and with all."""

from collections.abc import Iterator

from battery.part import Options, Row, SkippedError
from saishiki.runtime.backends import why_unavailable
from saishiki.runtime.bench.images import task_of
from saishiki.runtime.bench.plan import QUICK
from saishiki.runtime.bench.runners import Runner, runners_named
from saishiki.runtime.bench.starts import COMPILES_AT_FIRST_RUN, kernel_cache_rows
from saishiki.runtime.bundle import Bundle

CACHED = 3
STAND_IN = "onnxruntime:cpu:fp32"
"""What a dry run starts: it compiles nothing, but its processes begin and end alike."""


def first_runs(options: Options) -> Iterator[Row]:
    """Milliseconds of fresh processes: one with an empty kernel cache, ``CACHED`` more with what it left there."""
    if options.bundle is None:
        raise SkippedError("needs --bundle DIR with TensorRT-RTX engines")
    bundle = Bundle.open(options.bundle)
    for runner in _runners(bundle, options):
        rows = kernel_cache_rows(
            bundle, runner, task_of(bundle.manifest, QUICK), cached=1 if options.dry_run else CACHED
        )
        for row in rows:
            times = {} if options.dry_run else {"p50_ms": row.summary.p50_ms, "samples_ms": list(row.samples_ms)}
            yield {"what": row.part, "backend": str(runner), "n": row.summary.n, "sizes": dict(row.sizes), **times}


def _runners(bundle: Bundle, options: Options) -> tuple[Runner, ...]:
    if options.dry_run:
        return runners_named(bundle, [STAND_IN]).runners
    names = [name for name in COMPILES_AT_FIRST_RUN if why_unavailable(name) is None]
    if not names:
        raise SkippedError("; ".join(str(why_unavailable(name)) for name in COMPILES_AT_FIRST_RUN))
    return runners_named(bundle, names).runners
