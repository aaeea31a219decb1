"""cuDNN's graph API without torch: convolutions, linear layers and attention as plans, chosen by timing.

::

    cudnn = load_cudnn()
    with Handle(cudnn, device.stream) as handle:
        planner = Planner(cudnn, sm, handle.value)
        cache = ChoiceCache(circumstances_of(planner, gpu=device.name, multiprocessors=multiprocessors))
        plan = choose_plan(planner, operation, cache=cache, time_ms=PlanTimer(device, handle.value))
        plan.execute(handle.value, {"x": x, "w": w, "bias": bias, "y": y}, workspace)

Nothing here imports or loads cuDNN before :func:`load_cudnn` is called.
"""

from saishiki.runtime.backends.cudnn.attention import Attention
from saishiki.runtime.backends.cudnn.choice import TimePlan, choose_plan, time_candidates
from saishiki.runtime.backends.cudnn.choice_cache import (
    Choice,
    ChoiceCache,
    Circumstances,
    Failure,
    Timing,
    circumstances_of,
)
from saishiki.runtime.backends.cudnn.convolution import Convolution
from saishiki.runtime.backends.cudnn.devices import GPUS, properties_of
from saishiki.runtime.backends.cudnn.elsewhere import Planned, plan_elsewhere, summary_of
from saishiki.runtime.backends.cudnn.execution_plan import ExecutionPlan
from saishiki.runtime.backends.cudnn.from_plan import addresses_from_op, operation_from_op
from saishiki.runtime.backends.cudnn.handle import Handle
from saishiki.runtime.backends.cudnn.layout import Layout
from saishiki.runtime.backends.cudnn.libraries import INSTALL, Cudnn, load_cudnn, why_cudnn_unavailable
from saishiki.runtime.backends.cudnn.matmul import Matmul
from saishiki.runtime.backends.cudnn.operation import Operation
from saishiki.runtime.backends.cudnn.plan_part import WORKSPACE, ZEROS, ChosenPlan, CudnnPart
from saishiki.runtime.backends.cudnn.planner import (
    WORKSPACE_LIMIT_BYTES,
    Candidates,
    Planner,
)
from saishiki.runtime.backends.cudnn.timing import PlanTimer

__all__ = [
    "GPUS",
    "INSTALL",
    "WORKSPACE",
    "WORKSPACE_LIMIT_BYTES",
    "ZEROS",
    "Attention",
    "Candidates",
    "Choice",
    "ChoiceCache",
    "ChosenPlan",
    "Circumstances",
    "Convolution",
    "Cudnn",
    "CudnnPart",
    "ExecutionPlan",
    "Failure",
    "Handle",
    "Layout",
    "Matmul",
    "Operation",
    "PlanTimer",
    "Planned",
    "Planner",
    "TimePlan",
    "Timing",
    "addresses_from_op",
    "choose_plan",
    "circumstances_of",
    "load_cudnn",
    "operation_from_op",
    "plan_elsewhere",
    "properties_of",
    "summary_of",
    "time_candidates",
    "why_cudnn_unavailable",
]
