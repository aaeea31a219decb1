"""The table of all parts, the most valuable first: the window that decides the next engine, then what exists."""

from collections.abc import Mapping

from battery.part import Part

PARTS: Mapping[str, Part] = {
    "environment": Part("battery.machine:environment", 30, "versions of everything, and the GPU's own words", 1),
    "window_constants": Part(
        "executor_window.constants:measure",
        45,
        "the gap between launches in a graph, copy bandwidth, an 8192^3 product",
    ),
    "window_convs": Part(
        "executor_window.convs:measure",
        120,
        "each convolution of the U-Net by cuDNN: first choice, best candidate, plain against fused",
        continues=True,
    ),
    "window_plans": Part("executor_window.plans:measure", 60, "whether plans that were made on a CPU run here"),
    "window_fused": Part(
        "executor_window.fused:measure", 90, "cuDNN engines with sums in the epilogue or the norm in the prologue"
    ),
    "window_triton": Part("executor_window.triton_convs:measure", 90, "our Triton convolutions on the same shapes"),
    "window_norms": Part("executor_window.norms:measure", 45, "group_norm_silu in TB/s"),
    "eager": Part("battery.animediffusion:eager", 90, "a step of AnimeDiffusion in torch eager"),
    "graph": Part("battery.animediffusion:graph", 120, "the whole loop, launched and as one CUDA graph"),
    "cubins": Part("battery.cubins:cubins", 45, "the cubins without torch", needs_gpu="launches cubins"),
    "plan_cudnn": Part(
        "battery.plan_images:by_cudnn",
        180,
        "AnimeDiffusion by our own engine with cuDNN: image, bits, time, memory",
        60,
    ),
    "plan_triton": Part(
        "battery.plan_images:by_triton", 120, "the same by our kernels alone", 45, needs_gpu="does what plan_cudnn does"
    ),
    "plan_ops": Part(
        "battery.plan_ops:of_animediffusion", 240, "each operation of its plan: against fp64, and its time", 90
    ),
    "engines": Part("battery.engines:engines", 180, "ONNX Runtime, TensorRT-RTX and TensorRT on a bundle"),
    "first_runs": Part(
        "battery.first_runs:first_runs", 120, "TensorRT-RTX's first image: kernels compiled, and kernels in the cache"
    ),
    "layers": Part("battery.layers:layers", 90, "each layer in ONNX Runtime on the GPU, beside its floor"),
    "colorizediffusion_512": Part(
        "battery.colorizediffusion:at_512", 300, "ColorizeDiffusion v2, full mode, 512x512: one saving at a time", 120
    ),
    "colorizediffusion_768": Part("battery.colorizediffusion:at_768", 420, "the same at 768x768", 180),
    "plan_ops_colorizediffusion": Part(
        "battery.plan_ops:of_colorizediffusion", 300, "each operation of ColorizeDiffusion v2's full mode", 150
    ),
    "rtx_probe": Part(
        "battery.engines:rtx_probe", 90, "whether TensorRT-RTX takes the engines", needs_gpu="asks a GPU's driver"
    ),
    "compiled": Part("battery.animediffusion:compiled", 420, "torch.compile, max-autotune: the rival to beat", 200),
    "colorizediffusion_compiled": Part(
        "battery.colorizediffusion:compiled", 580, "ColorizeDiffusion v2 by torch.compile, 768x768", 300
    ),
    "gpu_tests": Part("battery.machine:gpu_tests", 300, "pytest -m gpu", 60),
    "kernels": Part("battery.machine:kernels", 480, "every op of saishiki.kernels; see bench_kernels.py", 120),
}
