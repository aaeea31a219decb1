"""AnimeDiffusion in PyTorch: as published, and with one saving after the other.

The sampler's coefficients are numbers from a table in all of them, where upstream gathers each from tensors in every
step: the ratios to the published row lean to its side.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import gpu_clock
import torch
from torch import Tensor

from rival_bench.published import published_unet
from rival_bench.scene import Scene, System
from saishiki.kernels import fused_sampler_step, fused_sampler_step_reference
from saishiki.models.animediffusion import Denoiser
from saishiki.runtime.samplers import sample_ddim

Denoise = Callable[[Tensor, int], Tensor]
Run = Callable[[], Any]


@dataclass(frozen=True)
class TorchRecipe:
    """What is done to the published computation.

    Args:
        sdpa: fused attention in place of two einsums and a softmax.
        hoisted: the time path runs once per schedule, not in every step.
        half: fp16 inside, fp32 at the borders; convolutions in channels-last.
        sampler: the update of x as torch launches it, or in one kernel.
        one_graph: the whole loop is captured once and replayed as one CUDA graph.
        compile_mode: of ``torch.compile``; None leaves it eager.
    """

    sdpa: bool = False
    hoisted: bool = False
    half: bool = False
    sampler: Literal["launched", "fused"] = "launched"
    one_graph: bool = False
    compile_mode: str | None = None


def torch_system(recipe: TorchRecipe, scene: Scene, device: str) -> System:
    """The system that a recipe makes; on a CPU the loop is not captured, and the fused kernel is its reference."""
    with torch.inference_mode():
        x, condition, noise = (
            torch.from_numpy(array).to(device) for array in (scene.noise.start, scene.condition, scene.step_noise)
        )
        denoise = _denoiser(recipe, scene, condition)
    if recipe.sampler == "fused":
        loop = _fused_loop(scene, denoise, x, noise)
    else:
        loop = lambda: sample_ddim(denoise, x, scene.schedule, noise=noise)  # noqa: E731
    loop = _inference(loop)
    return System(_inference(lambda: denoise(x, 0)), captured(loop, device) if recipe.one_graph else loop, device)


def prepare_torch() -> None:
    """fp32 that is fp32, and cuDNN's fastest algorithms."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _denoiser(recipe: TorchRecipe, scene: Scene, condition: Tensor) -> Denoise:
    original = scene.model.network.denoise_fn
    unet = copy.deepcopy(original) if recipe.sdpa else published_unet(original)
    unet = unet.to(condition.device)
    t = torch.from_numpy(scene.schedule.t).to(condition.device)
    time = unet.time_projections(t)
    if recipe.half:
        unet = unet.half().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        condition, time = condition.half(), time.half()
    network: Any = Denoiser(unet) if recipe.hoisted else unet
    if recipe.compile_mode is not None:
        network = torch.compile(network, mode=recipe.compile_mode)

    def denoise(x: Tensor, k: int) -> Tensor:
        noisy = x.to(condition.dtype)
        if recipe.hoisted:
            eps = network(noisy, condition, time[k : k + 1])
        else:
            eps = network(torch.cat([noisy, condition], dim=1), t[k : k + 1])
        return eps.to(x.dtype)  # type: ignore[no-any-return]

    return denoise


def _fused_loop(scene: Scene, denoise: Denoise, start: Tensor, noise: Tensor) -> Run:
    step = fused_sampler_step if start.is_cuda else fused_sampler_step_reference
    solver = torch.from_numpy(scene.solver).to(start.device)

    def loop() -> Tensor:
        x = start.clone()
        for k in range(len(solver)):
            step(x, denoise(x, k).contiguous(), solver, k, noise=noise[k])
        return x

    return loop


def captured(run: Run, device: str) -> Run:
    """``run`` as one CUDA graph; on a CPU, ``run`` itself."""
    if device == "cpu":
        return run
    return gpu_clock.captured(run)


def _inference(run: Run) -> Run:
    def call() -> Any:
        with torch.inference_mode():
            return run()

    return call
