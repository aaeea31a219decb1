"""From a tensor that waits to the operations that compute it, with everything that can be folded into them.

Importing this package makes :func:`saishiki.export.plan.operands.compute` know every kind of waiting tensor.
"""

from saishiki.export.plan.computing.contractions import convolution
from saishiki.export.plan.computing.elementwise import pointwise
from saishiki.export.plan.computing.norms import store_fp32

__all__ = ["convolution", "pointwise", "store_fp32"]
