"""Denoisers of ColorizeDiffusion with regions, as plans, of one level instead of four: tracing takes the time."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.export.plan import lower_module  # noqa: E402
from saishiki.models.colorizediffusion import UNet, layers, unet  # noqa: E402
from saishiki.models.colorizediffusion.denoiser import Denoiser  # noqa: E402
from saishiki.models.colorizediffusion.hoists import DenoiserHoists  # noqa: E402
from saishiki.runtime.backends.plans import LoadedPlan  # noqa: E402
from saishiki.runtime.pipelines.colorizediffusion import DenoiserVariant, Generation  # noqa: E402
from saishiki.runtime.signature import Array, Sizes  # noqa: E402
from tests.models.colorizediffusion.small_networks import INNER, randomized, small_config  # noqa: E402

SIZES: Sizes = {"batch": 2, "height": 32, "width": 48}
GROUPS = 8
"""Of norms: as many channels in each as the kernels of norms read at a time."""
HINTED_BLOCKS = (0, 1)


def small_denoiser(generation: Generation, variant: DenoiserVariant) -> LoadedPlan:
    """The plan of a variant, whose weights are random."""
    warp_widths = (INNER,) * 2 if generation == "v2" else None
    config = replace(small_config(generation), channel_mult=(1,), num_res_blocks=1, warp_widths=warp_widths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "GROUPS", GROUPS)
        patch.setattr(unet, "HINTED_BLOCKS", HINTED_BLOCKS)
        # The prefix ends behind the encoder's first transformer, and this encoder has none.
        denoiser = Denoiser(randomized(UNet(config)), variant, DenoiserHoists(prefix=False))
        lowered = lower_module(denoiser, denoiser.signature, SIZES)
    return LoadedPlan(lowered.plan, denoiser.signature, lowered.read_weights())


def inputs_of(loaded: LoadedPlan, sizes: Sizes = SIZES) -> dict[str, Array]:
    """Normal numbers; a third of the tokens is foreground, and the background's share is 0.3."""
    rng = np.random.default_rng(8)

    def draw(name: str, shape: tuple[int, ...]) -> Array:
        if name.startswith("foreground_"):
            return (rng.random(shape) < 1 / 3).astype(np.float32)
        return np.full(shape, 0.3, np.float32) if name == "merge_scale" else rng.normal(size=shape).astype(np.float32)

    return {spec.name: draw(spec.name, spec.shape(sizes)) for spec in loaded.signature.inputs}
