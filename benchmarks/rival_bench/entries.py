"""Every row of the comparison: what it is, on which row it builds, and why it cannot run here where it cannot.

The published computation comes first. Rows that build on another are the ablation: each adds one saving. The rest are
rivals, which stand for themselves. Where a row needs a GPU, the same row on a CPU would be another thing (fp16 there is
slower and less exact, and there is nothing to capture), so it is left out, not replaced.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass

from rival_bench.scene import ETA, Scene, System
from rival_bench.torch_systems import TorchRecipe, torch_system
from saishiki.runtime.backends import open_backend, why_unavailable
from saishiki.runtime.backends.onnxruntime import why_unavailable as why_no_onnxruntime
from saishiki.runtime.backends.plans import BACKEND as PLANS
from saishiki.runtime.backends.protocol import no_progress
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.manifest import Precision
from saishiki.runtime.pipelines import Sampling
from saishiki.runtime.pipelines.animediffusion import AnimeDiffusionPipeline

PUBLISHED = "published, PyTorch eager fp32"
NEEDS_GPU = "needs a GPU"

Open = Callable[[Scene, str], System]
WhyNot = Callable[[Bundle, str], str | None]


@dataclass(frozen=True)
class Entry:
    """A row; ``open`` and ``why_not`` are given the torch device, ``cpu`` or ``cuda``."""

    name: str
    precision: Precision
    open: Open
    why_not: WhyNot
    onto: str | None = None


def _anywhere(_: Bundle, device: str) -> str | None:
    return None


def _on_gpu(_: Bundle, device: str) -> str | None:
    return None if device == "cuda" else NEEDS_GPU


def _with_compiler(_: Bundle, device: str) -> str | None:
    if device == "cpu" and shutil.which("g++") is None and shutil.which("c++") is None:
        return "torch.compile needs a C++ compiler on a CPU; there is neither g++ nor c++"
    return None


def _torch(recipe: TorchRecipe) -> Open:
    return lambda scene, device: torch_system(recipe, scene, device)


def _compiled(*, half: bool) -> Open:
    def open_compiled(scene: Scene, device: str) -> System:
        mode = "max-autotune" if device == "cuda" else "default"
        return torch_system(TorchRecipe(half=half, compile_mode=mode), scene, device)

    return open_compiled


def _runtime(name: str, backend_device: str, precision: Precision) -> Open:
    """Our runtime on a backend; its arrays are in host memory."""

    def open_runtime(scene: Scene, device: str) -> System:
        pipeline = AnimeDiffusionPipeline.load(
            scene.bundle, open_backend(scene.bundle, name, backend_device), precision
        )
        time = pipeline.time_table(scene.schedule)[:1]
        sampling = Sampling(steps=scene.steps, eta=ETA, start="noise")
        return System(
            lambda: pipeline.denoiser(noisy=scene.noise.start, condition=scene.condition, time=time)["eps"],
            lambda: pipeline(*scene.pictures, sampling, scene.noise, no_progress),
        )

    return open_runtime


def _with_engines(name: str, built_for: str | None = None) -> WhyNot:
    """The backend is there, and the bundle has engines for it, which it may call by another name."""

    def why_not(bundle: Bundle, device: str) -> str | None:
        engines = {engine.backend for module in bundle.manifest.modules.values() for engine in module.engines}
        problem = why_unavailable(name)
        return problem or (None if (built_for or name) in engines else f"the bundle has no engines of {name}")

    return why_not


def _with_plans(name: str) -> WhyNot:
    return _with_engines(name, built_for=PLANS)


SDPA = "+ SDPA attention"
HALF = "+ fp16 policy"
FUSED = "+ fused sampler"

ENTRIES = (
    Entry(PUBLISHED, "fp32", _torch(TorchRecipe()), _anywhere),
    Entry("+ hoisted time path", "fp32", _torch(TorchRecipe(hoisted=True)), _anywhere, onto=PUBLISHED),
    Entry(SDPA, "fp32", _torch(TorchRecipe(hoisted=True, sdpa=True)), _anywhere, onto="+ hoisted time path"),
    Entry(
        "+ exported graph in ONNX Runtime, CPU fp32", "fp32", _runtime("onnxruntime", "cpu", "fp32"), _anywhere, SDPA
    ),
    Entry(HALF, "fp16", _torch(TorchRecipe(hoisted=True, sdpa=True, half=True)), _on_gpu, onto=SDPA),
    Entry(FUSED, "fp16", _torch(TorchRecipe(True, True, True, "fused")), _on_gpu, onto=HALF),
    Entry(
        "+ one CUDA graph of the loop",
        "fp16",
        _torch(TorchRecipe(True, True, True, "fused", True)),
        _on_gpu,
        onto=FUSED,
    ),
    Entry("published, PyTorch eager fp16", "fp16", _torch(TorchRecipe(half=True)), _on_gpu),
    Entry("published, torch.compile fp32", "fp32", _compiled(half=False), _with_compiler),
    Entry("published, torch.compile fp16", "fp16", _compiled(half=True), _on_gpu),
    Entry(
        "ONNX Runtime, CUDA fp16",
        "fp16",
        _runtime("onnxruntime", "cuda", "fp16"),
        lambda bundle, device: why_no_onnxruntime(cuda=True),
    ),
    Entry(
        "our plans, cuDNN and Triton fp16", "fp16", _runtime("cuda-cudnn", "cuda", "fp16"), _with_plans("cuda-cudnn")
    ),
    Entry("our plans, Triton alone fp16", "fp16", _runtime("cuda-triton", "cuda", "fp16"), _with_plans("cuda-triton")),
    Entry("TensorRT for RTX, fp16", "fp16", _runtime("tensorrt-rtx", "cuda", "fp16"), _with_engines("tensorrt-rtx")),
    Entry("TensorRT, fp16", "fp16", _runtime("tensorrt", "cuda", "fp16"), _with_engines("tensorrt")),
)
