"""A mask at latent size, and which positions of every level of the U-Net it makes foreground.

The denoiser's graph only compares these maps with 0.5: each generation's threshold, and what it does with a mask equal
to it, are settled here in fp32. (Upstream compares in fp16 where its half switch is on; a threshold of 0.05 then is
0.04998779.) Source: the published split attention and skip warping, tellurion-kanata/colorizeDiffusion c9bd9fb.
"""

from collections.abc import Mapping

import numpy as np

from saishiki.runtime.pipelines.colorizediffusion.variants import Generation
from saishiki.runtime.resampling import scale_bicubic
from saishiki.runtime.signature import Array

_LATENT_FACTOR = 0.125
_ENCODER = {"foreground_in_0": 1.0, "foreground_in_1": 0.5, "foreground_in_2": 0.25, "foreground_mid": 0.125}
# Level 3 is read by warped skips alone. They resize by size, which is the same grid where all sides halve exactly.
_DECODER = {"foreground_out_3": 0.125, "foreground_out_2": 0.25, "foreground_out_1": 0.5, "foreground_out_0": 1.0}

# Whether a mask equal to the threshold is foreground: in the encoder and the middle, and in the decoder.
_TIE_IS_FOREGROUND: Mapping[Generation, tuple[bool, bool]] = {
    "v1": (True, True),
    "v1.5": (False, False),
    "v2": (True, False),
}


def mask_to_latent(mask: Array) -> Array:
    """(B, 1, H/8, W/8) fp32 of a mask (B, 1, H, W): plain bicubic with the factor 0.125, not clamped, as published."""
    return scale_bicubic(mask, _LATENT_FACTOR)


def foreground_levels(mask: Array, generation: Generation, threshold: float) -> Mapping[str, Array]:
    """The denoiser's ``foreground_*`` inputs: (B, tokens of the level) fp32, 1.0 foreground and 0.0 background.

    mask: (B, 1, h, w) at latent size, sides multiples of 8 (:func:`mask_to_latent`). Raises ``ValueError`` for another
    shape or an unknown generation.
    """
    _check(mask, generation)
    encoder_tie, decoder_tie = _TIE_IS_FOREGROUND[generation]
    encoded = {name: _decide(mask, factor, threshold, encoder_tie) for name, factor in _ENCODER.items()}
    return encoded | {name: _decide(mask, factor, threshold, decoder_tie) for name, factor in _DECODER.items()}


def _decide(mask: Array, factor: float, threshold: float, tie_is_foreground: bool) -> Array:
    level = mask.astype(np.float32) if factor == 1 else scale_bicubic(mask, factor)
    compare = np.greater_equal if tie_is_foreground else np.greater
    return compare(level, np.float32(threshold)).reshape(len(mask), -1).astype(np.float32)


def _check(mask: Array, generation: Generation) -> None:
    if generation not in _TIE_IS_FOREGROUND:
        raise ValueError(f"unknown generation {generation!r}: use one of {', '.join(_TIE_IS_FOREGROUND)}")
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2] % 8 or mask.shape[3] % 8 or not mask.size:
        raise ValueError(f"expected a latent mask (B, 1, h, w) with sides that are multiples of 8, got {mask.shape}")
