"""Fused Triton kernels, each beside its plain torch reference."""

from saishiki.kernels.ddim_step import ddim_step, ddim_step_reference

__all__ = ["ddim_step", "ddim_step_reference"]
