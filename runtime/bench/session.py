"""A benchmark from beginning to end: parity first, then every runner's subjects, then what weakens the figures."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from time import perf_counter

import msgspec

from saishiki.runtime.backends import open_backend
from saishiki.runtime.bench.environment import describe_environment, read_gpus
from saishiki.runtime.bench.images import image_again_row, image_rows, task_of
from saishiki.runtime.bench.measure import Seconds
from saishiki.runtime.bench.memory import gpu_bytes_used, memory_of
from saishiki.runtime.bench.modules import module_rows
from saishiki.runtime.bench.notes import notes_on
from saishiki.runtime.bench.ops import plan_results, planned_modules, timed_plans
from saishiki.runtime.bench.plan import Plan
from saishiki.runtime.bench.runners import Chosen, Runner
from saishiki.runtime.bench.schema import SCHEMA_VERSION, BundleIdentity, Report, Row, RunnerResult, Stability
from saishiki.runtime.bench.starts import cold_starts, load_rows
from saishiki.runtime.bench.summary import shared_spread
from saishiki.runtime.bench.throughput import batch_rows, caller_rows
from saishiki.runtime.bench.watched import open_watched
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BundleError
from saishiki.runtime.manifest import Certificate, digest_of, json_from_manifest
from saishiki.runtime.parity import measure

Say = Callable[[str], None]


def run_bench(bundle: Bundle, chosen: Chosen, plan: Plan, say: Say, *, clock: Seconds = perf_counter) -> Report:
    """Measures a bundle on the chosen runners; ``say`` is told what is done next.

    Raises ``BundleError`` before anything is measured where a runner does not compute what the checkpoint computes.
    """
    begin, started = clock(), datetime.now(UTC).isoformat(timespec="seconds")
    environment = describe_environment()
    parities = [_parity(bundle, runner, say) for runner in chosen.runners]
    results: list[RunnerResult] = []
    late: dict[str, str] = {}
    for runner, parity in zip(chosen.runners, parities, strict=True):
        elapsed_s = clock() - begin
        if not chosen.named and _ends_late(len(results), elapsed_s, plan):
            late[str(runner)] = f"{elapsed_s:.0f} s have passed; measure it alone with --backends {runner}"
        else:
            results.append(_measured(bundle, runner, parity, plan, say))
    report = Report(
        schema_version=SCHEMA_VERSION,
        started=started,
        seconds=round(clock() - begin, 1),
        quick=plan.quick,
        bundle=identity_of(bundle),
        environment=replace(environment, gpus_after=read_gpus()),
        runners=tuple(results),
        skipped={**chosen.skipped, **late},
        notes=(),
        plans=tuple(result for module in planned_modules(bundle) for result in plan_results(bundle, module)),
    )
    return replace(report, notes=notes_on(report))


def _ends_late(done: int, elapsed_s: float, plan: Plan) -> bool:
    """Whether one more runner, as slow as those before it, would end after the plan's limit."""
    return done > 0 and elapsed_s * (done + 1) / done > plan.limit_s


def identity_of(bundle: Bundle) -> BundleIdentity:
    """Which bundle it is."""
    manifest = bundle.manifest
    return BundleIdentity(
        digest=digest_of(msgspec.json.decode(json_from_manifest(manifest))),
        family=manifest.family,
        variant=manifest.variant,
        profiles=tuple(str(profile) for profile in manifest.profiles),
        saishiki_version=manifest.saishiki_version,
        checkpoint=manifest.checkpoint.name,
        checkpoint_sha256=manifest.checkpoint.sha256,
        checkpoint_metadata=manifest.checkpoint.metadata,
    )


def _parity(bundle: Bundle, runner: Runner, say: Say) -> Certificate:
    """The certificate of the runner's engines here; raises ``BundleError`` where it is red: then no speed counts."""
    say(f"{runner}: parity vectors")
    with closing(open_backend(bundle, runner.backend, runner.device)) as backend:
        certificate = measure(
            bundle,
            backend,
            precisions=(runner.precision,),
            only_profiles=runner.backend != "onnxruntime",
            versions={"saishiki": version("saishiki")},
        )
    if certificate.verdict == "failed":
        raise BundleError(
            f"{bundle.path} does not compute what its checkpoint computes on {runner}, so no speed is reported; "
            f"see: saishiki verify {bundle.path} --backend {runner.backend} --device {runner.device} "
            f"--precision {runner.precision}; measure the others with --backends"
        )
    return certificate


def _measured(bundle: Bundle, runner: Runner, parity: Certificate, plan: Plan, say: Say) -> RunnerResult:
    task = task_of(bundle.manifest, plan)
    say(f"{runner}: cold start")
    cold = cold_starts(bundle, runner, task, plan)
    say(f"{runner}: load and first image")
    loads = load_rows(bundle, runner, task, plan)
    before = gpu_bytes_used(runner)
    with open_watched(bundle, runner) as (colorizer, watched):
        say(f"{runner}: one image")
        images = image_rows(colorizer, watched, task, plan)
        gpu_bytes = _difference(gpu_bytes_used(runner), before)
        say(f"{runner}: modules")
        modules = module_rows(watched.modules, bundle.manifest.profiles, plan)
        plans = timed_plans(bundle, watched.modules)
        say(f"{runner}: batches and callers")
        throughput = batch_rows(colorizer, task, plan) + caller_rows(colorizer, task, plan)
        say(f"{runner}: one image again")
        again = image_again_row(colorizer, watched, task, plan)
        memory = memory_of(bundle, watched, runner.precision, peak_rss_bytes=cold.peak_rss_bytes, gpu_bytes=gpu_bytes)
    rows = (*images, again, *modules, *throughput, *loads, *cold.rows)
    stability = stability_of(images[0], again)
    return RunnerResult(runner.backend, runner.device, runner.precision, parity, rows, memory, stability, plans)


def _difference(after: int | None, before: int | None) -> int | None:
    return None if after is None or before is None else after - before


def stability_of(first: Row, again: Row) -> Stability:
    """Whether two measurements of one subject agree within their own spread."""
    a, b = first.summary, again.summary
    difference, allowed = abs(b.p50_ms / a.p50_ms - 1), shared_spread(a, b)
    return Stability(a.p50_ms, b.p50_ms, difference, allowed, difference <= allowed)
