"""Which layers of a bundle's denoiser take how long in ONNX Runtime on the GPU, beside the vendor's peaks."""

import os
from collections.abc import Iterator

from graph_roofline.layers import Layer
from graph_roofline.onnxruntime_times import CPU, CUDA, WAIT, LayerTimes
from graph_roofline.report import counted, layer_rows, profile_report, profiled, work_report
from roofline import GPUS, Gpu, Roofline, Work, roofline_on

from battery.checkout import asked
from battery.part import Options, Row, SkippedError
from saishiki.runtime.backends.onnxruntime import why_unavailable
from saishiki.runtime.bundle import Bundle

RUNS = 20


def layers(options: Options) -> Iterator[Row]:
    """One row for the run, then one per layer, the farthest from its floor first; every launch is waited for.

    The floor is that of the vendor's peaks. A dry run takes the CPU, and gives no times.
    """
    os.environ[WAIT] = "1"  # CUDA has not been used yet in this process
    if options.bundle is None:
        raise SkippedError("needs --bundle DIR, a bundle of AnimeDiffusion")
    if not options.dry_run and (reason := why_unavailable(cuda=True)) is not None:
        raise SkippedError(reason)
    bundle = Bundle.open(options.bundle, allow_failed=True)
    tuned = bundle.manifest.profiles[0].opt
    what = counted(bundle, "denoiser", "fp32" if options.dry_run else "fp16", tuned)
    precision, provider = ("fp32", CPU) if options.dry_run else ("fp16", CUDA)
    times = profiled(bundle, "denoiser", precision, what, runs=1 if options.dry_run else RUNS, provider=provider)
    yield from rows_of(what.layers, times, gpu_of(asked("name") or ""), work_report(what), options)


def rows_of(found: tuple[Layer, ...], times: LayerTimes, gpu: Gpu | None, work: Row, options: Options) -> Iterator[Row]:
    """The rows of a profile; without a known GPU no floors, in a dry run no times."""

    def floor(work: Work) -> Roofline:
        return Roofline(0.0, "unknown") if gpu is None else roofline_on(gpu, work)

    rows = {row["layer"]: row for row in layer_rows(found, floor, times)}
    report = profile_report(times, list(rows.values()))
    names = [*report.pop("farthest"), *rows]
    peaks = "none known" if gpu is None else gpu.source
    yield {"what": "denoiser", "waiting": WAIT, "peaks": peaks, **work, **({} if options.dry_run else report)}
    for name in dict.fromkeys(names):
        yield {"what": "layer", **(_untimed(rows[name]) if options.dry_run else rows[name])}


def _untimed(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in ("us", "floor_percent", "floor_us", "bound")}


def gpu_of(name: str) -> Gpu | None:
    """The GPU whose peaks are known here, by what ``nvidia-smi`` calls it."""
    return next((gpu for gpu in GPUS if gpu.name.removeprefix("RTX ") in name), None)
