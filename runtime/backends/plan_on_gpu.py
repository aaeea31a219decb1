"""A plan as a kind of GPU runs it: plan files know none, so what depends on one is rewritten when a plan is loaded."""

from saishiki.runtime.backends.convolution_tiles import NORM_TARGETS
from saishiki.runtime.plan import Plan
from saishiki.runtime.plan.fold_norms import fold_norms
from saishiki.runtime.plan.ops import OpBackend


def plan_on_gpu(plan: Plan, *, target: str, library: OpBackend) -> Plan:
    """The plan with the launches that suit a GPU.

    Args:
        target: its compute capability, such as ``sm89``.
        library: ``cudnn`` where cuDNN takes what it has engines for, ``triton`` where all is left to our kernels.
    """
    # cuDNN's precompiled engines have no norm in front, and a plan in fp32 is computed on the host.
    folds = library == "triton" and target in NORM_TARGETS and plan.dtype == "float16"
    return fold_norms(plan) if folds else plan
