"""AnimeDiffusion with random weights, ready to run: the published size, or a tiny one for a dry run."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from battery.part import Options
from saishiki.kernels.fused_sampler_step import fused_sampler_step, fused_sampler_step_reference
from saishiki.kernels.group_norm_silu import group_norm_silu, group_norm_silu_reference
from saishiki.models.animediffusion import CONFIGS, AnimeDiffusion, AnimeDiffusionConfig, modules
from saishiki.runtime.samplers import ddim_table
from saishiki.runtime.schedule import DDIMSchedule, DiffusionSchedule, ddim_schedule, linear_betas, schedule_buffers

TINY = AnimeDiffusionConfig(7, 3, 32, 1, (1, 2), 4, False, 1000)


@dataclass(frozen=True)
class Scale:
    """How large: the network, and its pictures."""

    config: AnimeDiffusionConfig
    size_px: int


@dataclass(frozen=True)
class Network:
    """The network and a run for it."""

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
    return fused_sampler_step if x.is_cuda else fused_sampler_step_reference


class FusedNorm(nn.Module):
    """A GroupNorm and the SiLU behind it in our kernel, or its reference where there is no GPU."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Any) -> Any:
        """x: (B, C, H, W)."""
        op = group_norm_silu if x.is_cuda else group_norm_silu_reference
        return op(x, self.norm.weight, self.norm.bias, groups=self.norm.num_groups, eps=self.norm.eps)


def with_our_norms(network: nn.Module) -> int:
    """Puts our kernel wherever a SiLU follows a GroupNorm, in place; returns how often."""
    found = 0
    for block in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for i, (norm, silu) in enumerate(itertools.pairwise(list(block))):
            if isinstance(norm, nn.GroupNorm) and isinstance(silu, nn.SiLU):
                block[i], block[i + 1] = FusedNorm(norm), nn.Identity()
                found += 1
    return found


def half_inside(denoiser: Any) -> Callable[..., Any]:
    """The module in fp16 behind casts, as its engines are."""
    half = denoiser.half()
    return lambda *inputs: half(*(tensor.half() for tensor in inputs)).float()


def config_of(options: Options) -> AnimeDiffusionConfig:
    """The published size; a tiny one in a dry run."""
    return scale_of(options).config


def scale_of(options: Options) -> Scale:
    """The published size; a tiny one in a dry run."""
    return Scale(TINY if options.dry_run else CONFIGS["published"], options.size_px)


def random_modules(config: AnimeDiffusionConfig) -> dict[str, nn.Module]:
    """The network's modules on the CPU; seed 0, which what is drawn next goes on from."""
    torch.manual_seed(0)
    return modules(AnimeDiffusion(config).eval())


def schedule_of(config: AnimeDiffusionConfig, options: Options) -> DDIMSchedule:
    """DDIM with eta 0."""
    diffusion = DiffusionSchedule(schedule_buffers(linear_betas(config.timesteps, 1e-6, 1e-2)))
    return ddim_schedule(diffusion, steps=options.steps, eta=0.0)


def build_network(
    options: Options, *, half: bool, channels_last: bool, our_norms: bool = False, scale: Scale | None = None
) -> Network:
    """Batch 1, seed 0: the same weights and inputs at every call.

    Args:
        scale: another one than :func:`scale_of` says.
    """
    scale = scale or scale_of(options)
    parts = {name: module.to(options.device) for name, module in random_modules(scale.config).items()}
    noisy, condition = (torch.randn(1, c, scale.size_px, scale.size_px) for c in (3, 4))
    schedule = schedule_of(scale.config, options)
    projections = parts["time_projection"](torch.from_numpy(schedule.t).float().to(options.device))
    denoiser: Any = parts["denoiser"]
    if our_norms:
        with_our_norms(denoiser)
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


def prepare_inference(options: Options) -> None:
    """No gradients, no TF32, and cuDNN's own search."""
    torch.set_num_threads(1 if options.dry_run else torch.get_num_threads())
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_grad_enabled(False)
