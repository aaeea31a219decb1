"""Launching the sampler kernel, :mod:`saishiki.kernels.fused_sampler_step`, over device memory."""

from dataclasses import dataclass

from saishiki.runtime.backends.device import Device, Memory, Table

KERNELS = {slots: f"fused_sampler_step_g{slots}_fp32" for slots in (1, 2, 3)}
"""The sampler kernel for each number of guidance slots."""
ALIGNED_NUMBERS = 16
"""What the kernel reads at a time, so that every guidance slot must begin at a multiple of it."""


@dataclass(frozen=True)
class StepMemory:
    """Where the sampler kernel finds and leaves its numbers.

    Args:
        n: numbers in x, a multiple of 16; with guidance, also from one slot of the prediction to the next.
        slots: of guidance.
        model_input: the engine's next input; None where that is x itself.
        noise: rows of it, the first ``noises`` of them drawn; None for none.
        history: of x0, of as many slots as ``history_slots`` says.
    """

    x: Memory
    prediction: Memory
    solver: Memory
    n: int
    slots: int = 1
    model_input: Memory | None = None
    noise: Table | None = None
    noises: int = 0
    history: Memory | None = None
    history_slots: int = 0


def launch_step(device: Device, at: StepMemory, k: int) -> None:
    """Launches the sampler kernel of step k."""
    noisy = at.noise is not None and k < at.noises
    device.launch(
        KERNELS[at.slots],
        x_ptr=at.x.address,
        prediction_ptr=at.prediction.address,
        table_ptr=at.solver.address,
        noise_ptr=at.noise.address(k) if at.noise is not None and noisy else 0,
        history_ptr=0 if at.history is None else at.history.address,
        model_input_ptr=0 if at.model_input is None else at.model_input.address,
        k=k,
        n=at.n,
        noises=int(noisy),
        history_slots=at.history_slots,
        # One slot, whatever the guidance: the engine is given a picture once.
        input_slots=int(at.model_input is not None),
    )
