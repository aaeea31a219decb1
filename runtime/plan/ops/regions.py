"""What operations by region have in common: which tokens are of the foreground, and writing tokens in an order."""

import numpy as np

from saishiki.runtime.signature import Array


def is_foreground(mask: Array, threshold: float, *, at_threshold: bool) -> Array:
    """Whether each token is foreground: above the threshold, or not below it. A NaN is only the latter."""
    chosen: Array = ~(mask < threshold) if at_threshold else mask > threshold
    return chosen


def write_tokens(out: Array, result: Array, order: Array) -> None:
    """Writes what a kernel writes that takes its tokens in an order: a token that is not in it keeps what it holds.

    Args:
        out: (B, T, ...), in whatever dims of the same order; result: the same.
        order: (B, T), a permutation of the tokens of each row.
    """
    rows = out.reshape(result.shape)
    tokens = np.arange(result.shape[1])
    for row, values, places in zip(rows, result, order, strict=True):
        taken = np.isin(tokens, places)
        row[taken] = values[taken]
