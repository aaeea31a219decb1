"""Every backend that can run a bundle, and whether TensorRT-RTX takes its engines on this GPU at all."""

import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from battery.clock import wall_latency
from battery.part import Options, Row, SkippedError
from saishiki.runtime.backends.cuda import CudaDevice
from saishiki.runtime.backends.onnxruntime import OnnxRuntimeBackend
from saishiki.runtime.backends.protocol import no_progress
from saishiki.runtime.backends.tensorrt import PACKAGES as TENSORRTS
from saishiki.runtime.backends.tensorrt import open_tensorrt
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.noise import draw_noise
from saishiki.runtime.pipelines import AnimeDiffusionPipeline, Sampling

WORDS = 4000
BUDGETS = {"fp32": 1e-2, "fp16": 1e-1}
"""Of an image, against ONNX Runtime in fp32 on the CPU."""


def engines(options: Options) -> Iterator[Row]:
    """Load time, the latency of a whole image and the error, or the reason why a backend is not there."""
    if options.bundle is None:
        raise SkippedError("needs --bundle DIR, a bundle of AnimeDiffusion")
    bundle = Bundle.open(options.bundle, allow_failed=True)
    inputs = _inputs(bundle, options)
    truth = None
    for name, precision, open_one in _backends(bundle, options):
        labels = {"backend": name, "precision": precision, "bundle": options.bundle.name, "steps": options.steps}
        try:
            row, image = _measured(bundle, open_one, precision, inputs, truth, options)
            truth = image if truth is None else truth
            yield {**labels, **row}
        except Exception as error:  # one backend that fails must not hide the others
            yield {**labels, "unavailable": str(error)[-WORDS:]}


def _inputs(bundle: Bundle, options: Options) -> tuple[Any, ...]:
    sizes = bundle.manifest.profiles[0].opt
    shape = (sizes["height"], sizes["width"])
    rng = np.random.default_rng(0)
    sketch, reference = (rng.uniform(-1, 1, (1, c, *shape)).astype(np.float32) for c in (1, 3))
    noise = draw_noise([0], (3, *shape), steps=0)
    return sketch, reference, Sampling(steps=options.steps, eta=0.0, start="noise"), noise, no_progress


def _measured(
    bundle: Bundle, open_one: Callable[[], Any], precision: Any, inputs: tuple[Any, ...], truth: Any, options: Options
) -> tuple[Row, Any]:
    start = time.perf_counter()
    backend = open_one()
    try:
        pipeline = AnimeDiffusionPipeline.load(bundle, backend, precision)
        image = pipeline(*inputs)
        cold = {} if options.dry_run else {"cold_s": round(time.perf_counter() - start, 2)}
        exact = image if truth is None else truth
        error = float(np.linalg.norm(image - exact) / np.linalg.norm(exact))
        row = {"error": error, "budget": BUDGETS[precision], **cold}
        if not error <= BUDGETS[precision]:
            return {**row, "red": True}, image
        loop = getattr(pipeline.denoiser, "loop", None)
        graphs = {} if loop is None else {"captured": loop.captured}
        return {**row, **wall_latency(lambda: pipeline(*inputs), options), **graphs}, image
    finally:
        backend.close()


def _backends(bundle: Any, options: Options) -> Iterator[tuple[str, Any, Callable[[], Any]]]:
    """onnxruntime on the CPU in fp32 first: the truth for the rest."""
    precisions = sorted(bundle.module("denoiser").graphs, reverse=True)
    for precision in precisions:
        yield "onnxruntime cpu", precision, lambda: OnnxRuntimeBackend(device=None)
    for precision in precisions:
        yield "onnxruntime cuda", precision, lambda: OnnxRuntimeBackend(device=0)
    for name in TENSORRTS:
        yield name, "fp16", lambda name=name: open_tensorrt(name, 0)  # type: ignore[misc]


def rtx_probe(options: Options) -> Iterator[Row]:
    """Whether TensorRT-RTX takes the bundle's engines, whatever the manifest says of this GPU."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        raise SkippedError("needs tensorrt_rtx; see benchmarks/README.md for how to carry it")
    if options.bundle is None:
        raise SkippedError("needs --bundle DIR with TensorRT-RTX engines")
    import tensorrt_rtx

    yield from probe(tensorrt_rtx, options.bundle, CudaDevice(0).target)


def probe(trt: Any, bundle_path: Path, target: str) -> Iterator[Row]:
    """TensorRT-RTX's verdict on each engine, and whether it deserializes."""
    runtime = trt.Runtime(trt.Logger(trt.Logger.INFO))
    bundle = Bundle.open(bundle_path, allow_failed=True)
    for name, module in bundle.manifest.modules.items():
        for entry in (engine for engine in module.engines if engine.backend == "tensorrt-rtx"):
            blob = bundle.file(entry.file).read_bytes()
            verdict, bits = runtime.get_engine_validity(blob)
            reasons = [n for n, bit in trt.EngineInvalidityDiagnostics.__members__.items() if int(bit) & int(bits)]
            labels = {"module": name, "target": entry.target, "gpu": target}
            yield {**labels, "verdict": str(verdict), "diagnostics": reasons}
            yield {**labels, "deserialized": runtime.deserialize_cuda_engine(blob) is not None}
