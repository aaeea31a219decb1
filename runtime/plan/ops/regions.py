"""Which tokens are of the foreground: an fp32 mask against a threshold."""

from saishiki.runtime.signature import Array


def is_foreground(mask: Array, threshold: float, *, at_threshold: bool) -> Array:
    """Whether each token is foreground: above the threshold, or not below it. A NaN is only the latter."""
    chosen: Array = ~(mask < threshold) if at_threshold else mask > threshold
    return chosen
