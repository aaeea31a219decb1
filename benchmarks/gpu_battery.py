"""``python benchmarks/gpu_battery.py -o FOLDER``: everything worth measuring on the first minutes with a GPU.

Made for a machine that is bare, offline and at hand for minutes only. Each part runs in a process of its own with a
time limit; one that fails, hangs or crashes is recorded with its last words and stops nothing. Parts write as they go,
so what a killed part had measured is kept. Everything lands in ``FOLDER/gpu_battery.json`` (default
``benchmarks/results/<gpu>/gpu_battery.json``), which is rewritten after every part.

It runs from a plain checkout: where ``saishiki`` is not installed, the script makes the namespace package out of links
in a temporary folder. Without pip, put what is missing on the path: unpacked wheels of ``msgspec``, ``cuda-core`` (1.0
or newer; older ones have other names) and, for RTX engines, ``tensorrt_rtx`` with its libraries::

    PYTHONPATH=site python3 benchmarks/gpu_battery.py -o results --commit 1a2b3c4

``--bundle DIR`` adds the engines of a bundle, ``--only part,part`` runs some parts, ``--dry-run`` runs everything that
does not need a GPU at tiny sizes, to see that the script itself is sound. It never changes a setting of the GPU.

Latencies are of the GPU, by CUDA events, each run timed alone after at least 20 warm-up runs; p50, p90 and p99 of n.
Errors are against torch in fp32 with the same random weights (seed 0); a part whose error is too large reports no time.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("export", "kernels", "models", "runtime")
PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt-rtx",
    "tensorrt",
    "cuda-core",
    "cuda-bindings",
    "msgspec",
    "nvidia-cudnn-cu13",
)
WORDS = 4000  # characters kept of what a failed part printed

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What the parts are told."""

    dry_run: bool
    bundle: Path | None

    @property
    def device(self) -> str:
        return "cpu" if self.dry_run else "cuda"

    @property
    def size_px(self) -> int:
        return 32 if self.dry_run else 256

    @property
    def steps(self) -> int:
        return 3 if self.dry_run else 10

    @property
    def runs(self) -> tuple[int, int]:
        """Warm-up runs, and timed ones."""
        return (1, 3) if self.dry_run else (20, 100)


class SkippedError(Exception):
    """A part that has nothing to do here; the message says what it needs."""


@dataclass(frozen=True)
class Part:
    """Something to measure: rows as they come, within a number of seconds."""

    run: Callable[[Options], Iterator[Row]]
    limit_s: int
    needs_gpu: bool


def latency(run: Callable[[], Any], options: Options) -> Row:
    """p50, p90 and p99 in milliseconds of ``run``."""
    warmup, n = options.runs
    for _ in range(warmup):
        run()
    times = sorted(_timed_ms(run, options) for _ in range(n))
    at = {f"p{q}_ms": round(times[min(n - 1, n * q // 100)], 4) for q in (50, 90, 99)}
    return {**at, "n": n, "warmup": warmup}


def _timed_ms(run: Callable[[], Any], options: Options) -> float:
    import torch

    if options.dry_run:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3
    events: Any = torch.cuda.Event
    begin, end = events(enable_timing=True), events(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def _synchronize(options: Options) -> None:
    import torch

    if not options.dry_run:
        torch.cuda.synchronize()


def row_of(run: Callable[[], Any], truth: Any, budget: float, options: Options, **labels: Any) -> Row:
    """Latency and error of what ``run`` returns against ``truth``; no times where the error is too large.

    ``first_s`` is the first run by the wall clock, compilation included.
    """
    start = time.perf_counter()
    out = run()
    _synchronize(options)
    first_s = round(time.perf_counter() - start, 3)
    error = ((out.double() - truth.double()).norm() / truth.double().norm()).item()
    row = {**labels, "error": error, "budget": budget, "first_s": first_s}
    if not error <= budget:  # NaN too
        return {**row, "red": True}
    return {**row, **latency(run, options)}


@dataclass(frozen=True)
class Network:
    """AnimeDiffusion with random weights, and a run for it."""

    denoiser: Any
    noisy: Any
    condition: Any
    time: Any  # (S, P)
    solver: Any  # (S, 13)

    def predict(self) -> Any:
        """eps of the first step."""
        return self.denoiser(self.noisy, self.condition, self.time[:1])

    def sample(self) -> Any:
        """The image, by DDIM with eta 0."""
        step, x = sampler_step(self.noisy), self.noisy.clone()
        for k in range(len(self.time)):
            eps = self.denoiser(x, self.condition, self.time[k : k + 1])
            step(x, eps.contiguous(), self.solver, k)
        return x


def sampler_step(x: Any) -> Callable[..., None]:
    """Our kernel, or its reference where there is no GPU."""
    from saishiki.kernels import fused_sampler_step, fused_sampler_step_reference

    return fused_sampler_step if x.is_cuda else fused_sampler_step_reference


def half_inside(denoiser: Any) -> Callable[..., Any]:
    """The module in fp16 behind casts, as its engines are."""
    half = denoiser.half()
    return lambda *inputs: half(*(tensor.half() for tensor in inputs)).float()


def build_network(options: Options, *, half: bool, channels_last: bool) -> Network:
    """The published size at 256 x 256, batch 1, seed 0: the same weights and inputs at every call."""
    import torch

    from saishiki.models.animediffusion import CONFIGS, AnimeDiffusion, AnimeDiffusionConfig, modules
    from saishiki.runtime.samplers import ddim_table
    from saishiki.runtime.schedule import DiffusionSchedule, ddim_schedule, linear_betas, schedule_buffers

    torch.manual_seed(0)
    config = AnimeDiffusionConfig(7, 3, 32, 1, (1, 2), 4, False, 1000) if options.dry_run else CONFIGS["published"]
    parts = modules(AnimeDiffusion(config).eval().to(options.device))
    noisy, condition = (torch.randn(1, c, options.size_px, options.size_px) for c in (3, 4))
    diffusion = DiffusionSchedule(schedule_buffers(linear_betas(config.timesteps, 1e-6, 1e-2)))
    schedule = ddim_schedule(diffusion, steps=options.steps, eta=0.0)
    projections = parts["time_projection"](torch.from_numpy(schedule.t).float().to(options.device))
    denoiser: Any = parts["denoiser"]
    denoiser = denoiser.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    return Network(
        denoiser=half_inside(denoiser) if half else denoiser,
        noisy=noisy.to(options.device),
        condition=condition.clamp(-1, 1).to(options.device),
        time=projections.detach(),
        solver=torch.from_numpy(ddim_table(schedule)).to(options.device),
    )


def exact(options: Options) -> tuple[Any, Any]:
    """eps of the first step and the image, by torch in fp32 without TF32."""
    network = build_network(options, half=False, channels_last=False)
    return network.predict(), network.sample()


def captured(run: Callable[[], Any], options: Options) -> Callable[[], Any]:
    """``run`` as one CUDA graph; in a dry run, ``run`` itself."""
    import torch

    if options.dry_run:
        return run
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay() -> Any:
        graph.replay()
        return out

    return replay


def environment(options: Options) -> Iterator[Row]:
    """Versions of everything, and the GPU's own words."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    yield {"python": platform.python_version(), "platform": platform.platform(), "cpus": os.cpu_count(), **versions}
    query = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,compute_cap"
    with contextlib.suppress(FileNotFoundError):
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        yield {"nvidia_smi": subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()}
    from saishiki.runtime.backends.cuda import driver_problem
    from saishiki.runtime.backends.tensorrt import PACKAGES as TENSORRTS
    from saishiki.runtime.backends.tensorrt import why_unavailable

    yield {"driver_problem": driver_problem(), **{name: why_unavailable(name) or "available" for name in TENSORRTS}}


def ceilings(options: Options) -> Iterator[Row]:
    """What the GPU can do at all: copy bandwidth, an fp16 matrix product, and the gap between launches in a graph."""
    import torch

    n = 1 << (20 if options.dry_run else 31)
    source = torch.randint(0, 255, (n,), dtype=torch.uint8, device=options.device)
    target = torch.empty_like(source)
    row = latency(lambda: target.copy_(source), options)
    yield {"what": "copy", "bytes": 2 * n, **row, "gb_per_s": round(2 * n / row["p50_ms"] / 1e6, 1)}

    m = 64 if options.dry_run else 8192
    a, b = (torch.randn(m, m, device=options.device).half() for _ in range(2))
    row = latency(lambda: a @ b, options)
    yield {"what": "fp16 matrix product", "size": m, **row, "tflops": round(2 * m**3 / row["p50_ms"] / 1e9, 1)}

    x = torch.zeros(1, device=options.device)

    def launches() -> None:
        for _ in range(200):
            x.add_(1.0)

    row = latency(captured(launches, options), options)
    yield {"what": "200 tiny kernels in a graph", **row, "us_each": round(row["p50_ms"] * 5, 3)}


def gpu_tests(options: Options) -> Iterator[Row]:
    """``pytest -m gpu``."""
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-m", "gpu", "-o", "addopts=--import-mode=importlib"]
    folders = [str(ROOT / "tests" / "kernels"), str(ROOT / "tests" / "runtime" / "backends")]
    done = subprocess.run([*command, *folders], cwd=ROOT, capture_output=True, text=True, check=False)
    yield {"returncode": done.returncode, "output": done.stdout[-WORDS:], "errors": done.stderr[-WORDS:]}
    if done.returncode:
        raise RuntimeError(f"pytest -m gpu ended with status {done.returncode}")


def kernels(options: Options) -> Iterator[Row]:
    """Every op of ``saishiki.kernels``: its test at real shapes, its speed and its rivals; see ``bench_kernels.py``."""
    if options.dry_run and gpu_name() == "none":
        os.environ["TRITON_INTERPRET"] = "1"
    from kernel_bench.cases import CASES, TINY_CASES
    from kernel_bench.measure import measured_rows, open_bench, red_rows

    bench = open_bench(dry_run=options.dry_run)
    yield {"what": "ceilings", **bench.row}
    rows = []
    for row in measured_rows(TINY_CASES if options.dry_run else CASES, bench):
        rows.append(row)
        yield row
    if red := red_rows(rows):
        raise RuntimeError(f"red: {'; '.join(red)}")


def _rate(row: Row, nbytes: int) -> Row:
    return {} if "red" in row else {"gb_per_s": round(nbytes / row["p50_ms"] / 1e6, 1)}


LAYOUTS = [(False, False), (False, True), (True, False), (True, True)]
BUDGETS = {False: 1e-3, True: 3e-2}


def _labels(half: bool, channels_last: bool) -> Row:
    return {"precision": "fp16" if half else "fp32", "layout": "channels_last" if channels_last else "contiguous"}


def _inference(options: Options) -> None:
    import torch

    torch.set_num_threads(1 if options.dry_run else torch.get_num_threads())
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_grad_enabled(False)


def eager(options: Options) -> Iterator[Row]:
    """One step of AnimeDiffusion in torch eager."""
    from torch.utils.flop_counter import FlopCounterMode

    _inference(options)
    truth, _ = exact(options)
    network = build_network(options, half=False, channels_last=False)
    with FlopCounterMode(display=False) as counter:
        network.predict()
    flops = counter.get_total_flops()
    yield {"what": "work of a step", "gflop": round(flops / 1e9, 2)}
    for half, channels_last in LAYOUTS:
        if half and options.dry_run:
            continue  # torch in fp16 on a CPU is neither right nor bearable
        network = build_network(options, half=half, channels_last=channels_last)
        row = row_of(network.predict, truth, BUDGETS[half], options, what="step", **_labels(half, channels_last))
        yield {**row, **_tflops(row, flops)}


def _tflops(row: Row, flops: int) -> Row:
    return {} if "red" in row else {"tflops": round(flops / row["p50_ms"] / 1e9, 1)}


def graph(options: Options) -> Iterator[Row]:
    """The whole loop of AnimeDiffusion, torch modules and our kernel: launched one by one, and as one CUDA graph."""
    _inference(options)
    _, truth = exact(options)
    for half, channels_last in LAYOUTS:
        if half and options.dry_run:
            continue
        network = build_network(options, half=half, channels_last=channels_last)
        labels = {"steps": options.steps, **_labels(half, channels_last)}
        yield row_of(network.sample, truth, BUDGETS[half], options, what="loop, launched", **labels)
        run = captured(network.sample, options)
        yield row_of(run, truth, BUDGETS[half], options, what="loop, one graph", **labels)


def compiled(options: Options) -> Iterator[Row]:
    """torch.compile, the rival to beat: max-autotune inside one graph of the whole loop, and with its own graphs."""
    import torch

    _inference(options)
    truth, image = exact(options)
    labels = {"steps": options.steps, **_labels(not options.dry_run, True)}
    budget = BUDGETS[not options.dry_run]
    network = build_network(options, half=not options.dry_run, channels_last=True)
    ours = replace(network, denoiser=torch.compile(network.denoiser, mode="max-autotune-no-cudagraphs"))
    yield row_of(ours.predict, truth, budget, options, what="step, compiled without graphs", **labels)
    yield row_of(captured(ours.sample, options), image, budget, options, what="loop, compiled, one graph", **labels)
    own = replace(network, denoiser=torch.compile(network.denoiser, mode="max-autotune"))
    yield row_of(lambda: own.predict().clone(), truth, budget, options, what="step, compiled, its own graph", **labels)


def cubins(options: Options) -> Iterator[Row]:
    """The cubin without torch: loading, launching, a graph of 200 launches, and that torch was never imported."""
    import numpy as np

    from saishiki.runtime.backends.cuda import CudaDevice
    from saishiki.runtime.backends.device_loop import launch_step

    device = CudaDevice(0)
    yield {"gpu": device.name, "target": device.target}
    n = 3 * 256 * 256
    arrays = np.random.default_rng(0).standard_normal((2, n), dtype=np.float32)
    row = np.array([[1, 1, 1.25, -0.75, -1, 1, 0, 0.9, 0.3, 0, 0, 0, 1]], np.float32)
    x, eps, table = (device.allocate(nbytes) for nbytes in (4 * n, 4 * n, row.nbytes))
    for memory, array in zip((x, eps, table), (*arrays, row), strict=True):
        device.upload(memory, array)

    def launch() -> None:
        launch_step(device, x_ptr=x.address, prediction_ptr=eps.address, table_ptr=table.address, noise_ptr=0, k=0, n=n)

    start = time.perf_counter()
    launch()
    device.synchronize()
    first_s = time.perf_counter() - start
    result = np.empty(n, np.float32)
    device.download(x, result)
    expected = 0.9 * ((arrays[0] - 0.6 * arrays[1]) / 0.8).clip(-1, 1) + 0.3 * arrays[1]
    error = float(np.abs(result - expected).max())
    yield {"what": "cubin launch", "max_abs_error": error, "first_s": round(first_s, 4)}
    if not error <= 1e-5:
        raise RuntimeError(f"the cubin is wrong by {error}")

    def launches() -> None:
        for _ in range(200):
            launch()

    for name, run in (("200 launches", launches), ("one graph of 200", device.capture(launches))):
        yield {"what": name, "us_each": round(_marked_ms(device, run) * 5, 3)}
    yield {"torch_imported": "torch" in sys.modules}
    device.close()


def _marked_ms(device: Any, run: Callable[[], Any]) -> float:
    """The median of 50 runs, in milliseconds of device time."""
    times = []
    for _ in range(70):
        before = device.mark()
        run()
        after = device.mark()
        after.wait()
        times.append(after.ms_since(before))
    return float(sorted(times[20:])[25])


def engines(options: Options) -> Iterator[Row]:
    """Every backend that can run the bundle: load time, the latency of a whole loop, and the error between backends."""
    if options.bundle is None:
        raise SkippedError("needs --bundle DIR, a bundle of AnimeDiffusion")
    import numpy as np

    from saishiki.runtime.backends.protocol import no_progress
    from saishiki.runtime.bundle import Bundle
    from saishiki.runtime.noise import draw_noise
    from saishiki.runtime.pipelines.animediffusion import AnimeDiffusionPipeline
    from saishiki.runtime.pipelines.protocol import Sampling

    bundle = Bundle.open(options.bundle, allow_failed=True)
    sizes = bundle.manifest.profiles[0].opt
    rng = np.random.default_rng(0)
    sketch, reference = (rng.uniform(-1, 1, (1, c, sizes["height"], sizes["width"])).astype(np.float32) for c in (1, 3))
    noise = draw_noise([0], (3, sizes["height"], sizes["width"]), steps=0)
    sampling = Sampling(steps=options.steps, eta=0.0, start="noise")
    truth = None
    for name, precision, open_one in _backends(bundle, options):
        labels = {"backend": name, "precision": precision}
        try:
            start = time.perf_counter()
            backend = open_one()
            pipeline = AnimeDiffusionPipeline.load(bundle, backend, precision)
            image = pipeline(sketch, reference, sampling, noise, no_progress)
            cold_s = time.perf_counter() - start
            truth = image if truth is None else truth
            times = _wall_ms(lambda: pipeline(sketch, reference, sampling, noise, no_progress), options)  # noqa: B023
            error = float(np.linalg.norm(image - truth) / np.linalg.norm(truth))
            loop = getattr(pipeline.denoiser, "loop", None)
            graphs = {} if loop is None else {"captured": loop.captured}
            yield {**labels, "cold_s": round(cold_s, 2), "error": error, **times, **graphs}
            backend.close()
        except Exception as error:  # one backend that fails must not hide the others
            yield {**labels, "failed": str(error)[-WORDS:]}


def _backends(bundle: Any, options: Options) -> Iterator[tuple[str, Any, Callable[[], Any]]]:
    """onnxruntime on the CPU in fp32 first: the truth for the rest."""
    from saishiki.runtime.backends.onnxruntime import OnnxRuntimeBackend
    from saishiki.runtime.backends.tensorrt import PACKAGES as TENSORRTS
    from saishiki.runtime.backends.tensorrt import open_tensorrt

    precisions = sorted(bundle.module("denoiser").graphs, reverse=True)
    for precision in precisions:
        yield "onnxruntime cpu", precision, lambda: OnnxRuntimeBackend(device=None)
    if options.dry_run:
        return
    for precision in precisions:
        yield "onnxruntime cuda", precision, lambda: OnnxRuntimeBackend(device=0)
    for name in TENSORRTS:
        yield name, "fp16", lambda name=name: open_tensorrt(name, 0)  # type: ignore[misc]


def _wall_ms(run: Callable[[], Any], options: Options) -> Row:
    """p50, p90 and p99 by the wall clock: what a caller sees, copies from and to the host included."""
    n = 2 if options.dry_run else 30
    times = []
    for _ in range(n + n // 3):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
        if sum(times) > 60e3:
            break
    kept = sorted(times[len(times) // 4 :])
    return {
        **{f"p{q}_ms": round(kept[min(len(kept) - 1, len(kept) * q // 100)], 3) for q in (50, 90, 99)},
        "n": len(kept),
    }


def rtx_probe(options: Options) -> Iterator[Row]:
    """Whether TensorRT-RTX takes the bundle's engines on this GPU at all, whatever the manifest says of it."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        raise SkippedError("needs tensorrt_rtx")
    if options.bundle is None:
        raise SkippedError("needs --bundle DIR with TensorRT-RTX engines")
    import tensorrt_rtx as trt

    from saishiki.runtime.backends.cuda import CudaDevice
    from saishiki.runtime.bundle import Bundle

    device = CudaDevice(0)
    runtime = trt.Runtime(trt.Logger(trt.Logger.INFO))
    bundle = Bundle.open(options.bundle, allow_failed=True)
    for name, module in bundle.manifest.modules.items():
        for entry in (engine for engine in module.engines if engine.backend == "tensorrt-rtx"):
            blob = bundle.file(entry.file).read_bytes()
            verdict, bits = runtime.get_engine_validity(blob)
            reasons = [n for n, bit in trt.EngineInvalidityDiagnostics.__members__.items() if int(bit) & int(bits)]
            labels = {"module": name, "target": entry.target, "gpu": device.target}
            yield {**labels, "verdict": str(verdict), "diagnostics": reasons}
            yield {**labels, "deserialized": runtime.deserialize_cuda_engine(blob) is not None}


PARTS: Mapping[str, Part] = {
    "environment": Part(environment, 60, needs_gpu=False),
    "ceilings": Part(ceilings, 60, needs_gpu=False),
    "gpu_tests": Part(gpu_tests, 300, needs_gpu=True),
    "cubins": Part(cubins, 60, needs_gpu=True),
    "kernels": Part(kernels, 480, needs_gpu=False),
    "eager": Part(eager, 120, needs_gpu=False),
    "graph": Part(graph, 150, needs_gpu=False),
    "engines": Part(engines, 240, needs_gpu=False),
    "rtx_probe": Part(rtx_probe, 90, needs_gpu=True),
    "compiled": Part(compiled, 420, needs_gpu=True),
}


def run_part(name: str, options: Options, rows: Path) -> None:
    """The child's side: runs one part, and appends each row to a file as it comes."""
    with rows.open("a") as file:
        for row in PARTS[name].run(options):
            file.write(json.dumps(row, default=str) + "\n")
            file.flush()


def result_of(name: str, arguments: list[str], folder: Path, environ: Mapping[str, str], limit_s: float) -> Row:
    """The parent's side: one part in a process of its own, with its rows and how it ended."""
    rows, log = folder / f"{name}.jsonl", folder / f"{name}.log"
    command = [sys.executable, str(Path(__file__).resolve()), *arguments, "--part", name, "--rows", str(rows)]
    start = time.monotonic()
    with log.open("w") as words:
        child = subprocess.Popen(command, env=environ, stdout=words, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code: int | None = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)  # the group: a part may have started processes of its own
            child.wait()
            code = None
    measured = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    ended = _ending(code, log.read_text(errors="replace")[-WORDS:], limit_s)
    return {"part": name, "seconds": round(time.monotonic() - start, 1), **ended, "rows": measured}


def _ending(code: int | None, words: str, limit_s: float) -> Row:
    if code == 0:
        return {"status": "ok"}
    if skipped := re.search(r"^(?:__main__\.)?SkippedError: (.*)$", words, re.MULTILINE):
        return {"status": "skipped", "why": skipped[1]}
    if code is None:
        return {"status": "timed out", "limit_s": limit_s, "words": words}
    return {"status": "failed", "returncode": code, "words": words}


def importable(folder: Path) -> dict[str, str]:
    """An environment in which ``saishiki`` can be imported; links to the checkout where it is not installed."""
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    try:
        found = importlib.util.find_spec("saishiki.runtime") is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        package = folder / "path" / "saishiki"
        package.mkdir(parents=True)
        for name in FOLDERS:
            (package / name).symlink_to(ROOT / name, target_is_directory=True)
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(package.parent), os.environ.get("PYTHONPATH"))))
    return environ


def gpu_name() -> str:
    """The GPU's name as a folder: ``nvidia-h200``, or ``none``."""
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        name = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (FileNotFoundError, subprocess.CalledProcessError, IndexError):
        return "none"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def commit_of_checkout() -> str:
    """The commit, with ``-dirty`` where files differ from it; ``unknown`` without a repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def run_all(names: list[str], options: Options, arguments: list[str], output: Path, commit: str) -> list[Row]:
    """Runs the parts one after the other, and rewrites the results after each."""
    output.mkdir(parents=True, exist_ok=True)
    results: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        environ = importable(Path(temporary))
        for name in names:
            if options.dry_run and PARTS[name].needs_gpu:
                results.append({"part": name, "seconds": 0.0, "status": "skipped", "why": "needs a GPU", "rows": []})
            else:
                results.append(result_of(name, arguments, Path(temporary), environ, PARTS[name].limit_s))
            head = {"gpu": gpu_name(), "commit": commit, "dry_run": options.dry_run, "unix_time": int(time.time())}
            text = json.dumps({**head, "parts": results}, indent=1)
            (output / "gpu_battery.json").write_text(text + "\n")
            print_result(results[-1])
    return results


def print_result(result: Row) -> None:
    """A short table; the file has the rest."""
    why = result.get("why") or (result.get("words") or "").strip().splitlines()[-1:] or ""
    print(f"== {result['part']}: {result['status']} in {result['seconds']} s {why}", flush=True)
    for row in result["rows"]:
        print("  ", ", ".join(f"{key} {_short(value)}" for key, value in row.items() if key not in ("n", "warmup")))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:200]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    parser.add_argument("--bundle", type=Path, metavar="DIR")
    parser.add_argument("--only", metavar="PARTS", help=f"some of: {','.join(PARTS)}")
    parser.add_argument("--commit", default=None, help="default: what git says of this checkout")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    options = Options(given.dry_run, given.bundle)
    if given.part:
        run_part(given.part, options, given.rows)
        return
    names = given.only.split(",") if given.only else list(PARTS)
    if unknown := set(names) - PARTS.keys():
        parser.error(f"unknown parts {sorted(unknown)}; expected some of {', '.join(PARTS)}")
    output = given.output or ROOT / "benchmarks" / "results" / gpu_name()
    arguments = [*(["--dry-run"] if given.dry_run else []), *(["--bundle", str(given.bundle)] if given.bundle else [])]
    results = run_all(names, options, arguments, output, given.commit or commit_of_checkout())
    ok = sum(result["status"] == "ok" for result in results)
    print(f"{output / 'gpu_battery.json'}: {ok} of {len(results)} parts ok")


if __name__ == "__main__":
    main()
