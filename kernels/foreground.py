"""Inside a kernel: which tokens are foreground, by their mask."""

import triton
import triton.language as tl


@triton.jit
def is_foreground(share, threshold, selection):  # type: ignore[no-untyped-def]
    """Above the threshold; where ``selection`` is not 0, not below it, which holds for a NaN too.

    ``selection`` counts :data:`saishiki.kernels.masked_split_cross_attention.semantics.SELECTIONS`.
    """
    return tl.where(selection == 0, share > threshold, (share < threshold) == 0)
