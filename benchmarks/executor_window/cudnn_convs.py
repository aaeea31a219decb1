"""A convolution as a graph of cuDNN: built, its candidates planned, and one of them enqueued.

The order of the epilogue is that of cuDNN's precompiled engines: residual, then a half bias. Anything else, and sums or
a prologue, goes to engines that cuDNN compiles at run time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from battery.part import Options, SkippedError

from executor_window.cudnn_library import import_cudnn, why_no_cudnn
from executor_window.layers import Conv
from executor_window.operands import Operands, Variant

# Of tensors; a plan that was read back knows its tensors by these alone.
X, W, BIAS, RESIDUAL, Y, SCALE, SHIFT, SUM, SQUARES = range(1, 10)


@dataclass(frozen=True)
class Session:
    """cuDNN on one GPU, or without one on a GPU's properties.

    Args:
        setup: what ``pygraph`` is given: the handle, or device_property and sm_version.
    """

    cudnn: Any
    setup: dict[str, Any]
    handle: Any = None


def open_session(options: Options) -> Session:
    """cuDNN on the current GPU; raises ``SkippedError`` where it is not there."""
    if why := why_no_cudnn():
        raise SkippedError(why)
    if options.dry_run and torch.cuda.is_available():
        raise SkippedError("cuDNN would run on the GPU, and a dry run has its tensors on the CPU")
    cudnn = import_cudnn()
    try:
        handle = cudnn.create_handle()
    except (RuntimeError, cudnn.cudnnGraphNotSupportedError) as error:
        raise SkippedError(f"cuDNN has no GPU to run on: {first_line(error)}") from error
    return Session(cudnn, {"handle": handle}, handle)


def first_line(error: Exception) -> str:
    """Of its message; the name of its class where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@dataclass
class ConvGraph:
    """A graph that was checked, the workspaces of its plans that were built, and why the last that was not was not."""

    session: Session
    graph: Any
    variant: Variant
    workspaces: dict[int, Any] = field(default_factory=dict)
    last_failure: str = ""

    @property
    def candidates(self) -> int:
        return int(self.graph.get_execution_plan_count())

    def name(self, index: int) -> str:
        """The engine and its knobs, as cuDNN names them."""
        return str(self.graph.get_plan_name_at_index(index))

    def build(self, index: int, device: str) -> bool:
        """Builds one candidate, and whether it can be."""
        try:
            self.graph.build_plan_at_index(index)
        except (RuntimeError, self.session.cudnn.cudnnGraphNotSupportedError) as error:
            self.last_failure = first_line(error)
            return False
        nbytes = self.graph.get_workspace_size_plan_at_index(index)
        self.workspaces[index] = torch.empty(max(1, nbytes), dtype=torch.uint8, device=device)
        return True

    def built(self, device: str) -> Iterator[int]:
        """The candidates that can be built, cuDNN's first choice first."""
        return (index for index in range(self.candidates) if self.build(index, device))

    def run_with(self, operands: Operands, index: int) -> Callable[[], None]:
        """Enqueues a built candidate on torch's current stream."""
        pack = pack_of(operands, self.variant)

        def run() -> None:
            set_stream(self.session)
            self.graph.execute_plan_at_index(pack, self.workspaces[index].data_ptr(), index, self.session.handle)

        return run


def set_stream(session: Session) -> None:
    """Work goes to torch's current stream: that of a capture, where there is one."""
    if torch.cuda.is_available():
        session.cudnn.set_stream(session.handle, torch.cuda.current_stream().cuda_stream)


def pack_of(operands: Operands, variant: Variant) -> dict[int, int]:
    """Addresses by tensor."""
    tensors = {X: operands.x, W: operands.w, Y: operands.y}
    if variant.bias:
        tensors[BIAS] = operands.bias
    if variant.residual:
        tensors[RESIDUAL] = operands.residual
    if variant.prologue:
        tensors |= {SCALE: operands.scale, SHIFT: operands.shift}
    if variant.sums:
        tensors |= {SUM: operands.sums[0], SQUARES: operands.sums[1]}
    return {uid: tensor.data_ptr() for uid, tensor in tensors.items()}


def plan_conv(session: Session, conv: Conv, variant: Variant, *, precompiled: bool) -> ConvGraph:
    """The graph with its candidates, none of them built; raises cuDNN's errors where nothing supports it.

    ``precompiled`` leaves out engines that would be compiled now.
    """
    cudnn = session.cudnn
    graph = describe_conv(session, conv, variant)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    if precompiled:
        graph.deselect_behavior_notes([cudnn.behavior_note.RUNTIME_COMPILATION])
    graph.check_support()
    return ConvGraph(session, graph, variant)


def describe_conv(session: Session, conv: Conv, variant: Variant) -> Any:
    """The operations: batch 1, NHWC, fp16 in and out, fp32 between."""
    cudnn = session.cudnn
    half, single = cudnn.data_type.HALF, cudnn.data_type.FLOAT
    graph = cudnn.pygraph(io_data_type=half, intermediate_data_type=single, compute_data_type=single, **session.setup)
    c, k, r = conv.channels_in, conv.channels_out, conv.kernel

    def image(uid: int, channels: int) -> Any:
        shape, strides = [1, channels, conv.height, conv.width], [1, channels * conv.width, channels]
        return graph.tensor(dim=shape, stride=[channels * conv.height * conv.width, *strides], data_type=half, uid=uid)

    def vector(uid: int, channels: int, data_type: Any) -> Any:
        return graph.tensor(
            dim=[1, channels, 1, 1], stride=[channels, 1, channels, channels], data_type=data_type, uid=uid
        )

    x = image(X, c)
    weight = graph.tensor(dim=[k, c, r, r], stride=[c * r * r, 1, c * r, c], data_type=half, uid=W)
    if variant.prologue:
        x = graph.swish(graph.add(graph.mul(x, vector(SCALE, c, single)), vector(SHIFT, c, single)))
        x.set_data_type(half)
    y = graph.conv_fprop(x, weight, padding=[r // 2] * 2, stride=[1, 1], dilation=[1, 1])
    if variant.residual:
        y = graph.add(y, image(RESIDUAL, k))
    if variant.bias:
        y = graph.add(y, vector(BIAS, k, half))
    if variant.sums:
        for uid, values in ((SUM, y), (SQUARES, graph.mul(y, y))):
            total = graph.reduction(values, mode=cudnn.reduction_mode.ADD)
            total.set_output(True).set_data_type(single).set_uid(uid)
            total.set_dim([1, k, 1, 1]).set_stride([k, 1, k, k])
    y.set_output(True).set_data_type(half).set_uid(Y)
    return graph
