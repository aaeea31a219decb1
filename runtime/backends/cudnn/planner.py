"""Planning an operation: cuDNN's candidates for one GPU, in its own order, and building one of them.

Planning a convolution takes milliseconds, so plans are made when a network is loaded and only the names of engines are
kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from saishiki.runtime.backends.cudnn.devices import properties_of
from saishiki.runtime.backends.cudnn.execution_plan import ExecutionPlan, uids_of
from saishiki.runtime.backends.cudnn.libraries import INSTALL, Cudnn
from saishiki.runtime.backends.cudnn.operation import Operation
from saishiki.runtime.errors import BackendError

WORKSPACE_LIMIT_BYTES = 32 * 2**20
"""Candidates that want more scratch memory are left out: they split sums among blocks, which seldom pays then."""

# Two runs are to be equal to the bit, sums to be in fp32, and products exact.
_AVOIDED_NUMERICS = ("NONDETERMINISTIC", "REDUCED_PRECISION_REDUCTION", "DOWN_CONVERT_INPUTS", "FFT", "WINOGRAD")


@dataclass(frozen=True)
class Candidates:
    """Engines that cuDNN proposes for an operation, the one it deems fastest first. Not every one can be built."""

    operation: Operation
    engines: Mapping[str, int]
    """The name of each and its number in the graph."""
    graph: Any = field(repr=False)
    cudnn: Cudnn = field(repr=False)

    def build(self, engine: str) -> ExecutionPlan:
        """The plan of one candidate; raises ``BackendError`` where it is none, or cannot be built."""
        if engine not in self.engines:
            raise BackendError(f"{engine} is not among cuDNN's {len(self.engines)} candidates for {self.operation}")
        index = self.engines[engine]
        try:
            self.graph.build_plan_at_index(index)
            workspace_bytes = int(self.graph.get_workspace_size_plan_at_index(index))
        except self.cudnn.errors as error:
            raise BackendError(f"cuDNN does not build {self.operation} by {engine}: {reason_of(error)}") from error
        uids = uids_of(self.operation)
        return ExecutionPlan(self.operation, engine, workspace_bytes, uids, self.graph, index, self.cudnn)

    def can_be_built(self, engine: str) -> bool:
        """Whether :meth:`build` does not raise."""
        try:
            self.build(engine)
        except BackendError:
            return False
        return True


@dataclass(frozen=True)
class Planner:
    """Plans for one GPU.

    Args:
        sm: its compute capability, 90 being 9.0.
        handle: of cuDNN on this GPU; None plans for the GPU that :func:`properties_of` knows of that compute
            capability, which need not be here. Such plans cannot be relied on to run on another.
        workspace_limit_bytes: the most scratch memory that a plan may need.
    """

    cudnn: Cudnn
    sm: int
    handle: int | None = None
    workspace_limit_bytes: int = WORKSPACE_LIMIT_BYTES

    def candidates(self, operation: Operation) -> Candidates:
        """What cuDNN proposes; raises ``BackendError`` where that is nothing."""
        try:
            graph = self._graph()
            self._record(graph, operation)
            self._query(graph, operation)
        except self.cudnn.errors as error:
            raise BackendError(self._refusal(operation, error)) from error
        engines: dict[str, int] = {}
        for index in range(graph.get_execution_plan_count()):
            engines.setdefault(str(graph.get_plan_name_at_index(index)), index)
        return Candidates(operation, engines, graph, self.cudnn)

    def first_plan(self, operation: Operation) -> ExecutionPlan:
        """The plan of the first candidate that can be built: what cuDNN deems fastest, without timing any."""
        candidates = self.candidates(operation)
        reasons = []
        for engine in candidates.engines:
            try:
                return candidates.build(engine)
            except BackendError as error:
                reasons.append(str(error))
        raise BackendError(no_engine_left(operation, reasons))

    def _graph(self) -> Any:
        frontend = self.cudnn.frontend
        if self.handle is None:
            where = {"device_property": frontend.create_device_properties(properties_of(self.sm))}
        else:
            where = {"handle": self.handle}
        # Without sm_version the frontend asks the CUDA runtime, a library that nothing else here needs.
        return frontend.pygraph(
            io_data_type=frontend.data_type.HALF,
            intermediate_data_type=frontend.data_type.FLOAT,
            compute_data_type=frontend.data_type.FLOAT,
            sm_version=self.sm,
            **where,
        )

    def _record(self, graph: Any, operation: Operation) -> None:
        half = self.cudnn.frontend.data_type.HALF
        uids, layouts = uids_of(operation), dict(operation.layouts())
        output = layouts.pop("y")
        inputs = {
            name: graph.tensor(
                name=name, dim=list(layout.dims), stride=list(layout.strides), data_type=half, uid=uids[name]
            )
            for name, layout in layouts.items()
        }
        y = operation.record(graph, inputs)
        y.set_output(True).set_dim(list(output.dims)).set_stride(list(output.strides))
        y.set_data_type(half).set_uid(uids["y"])

    def _query(self, graph: Any, operation: Operation) -> None:
        frontend = self.cudnn.frontend
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([frontend.heur_mode.A, frontend.heur_mode.FALLBACK])
        graph.deselect_numeric_notes([getattr(frontend.numerical_note, name) for name in _AVOIDED_NUMERICS])
        if not operation.compiled_when_planned:
            # What has no tensor cores is never the fastest, and takes any strides without a word.
            graph.select_numeric_notes([frontend.numerical_note.TENSOR_CORE])
            graph.deselect_behavior_notes([frontend.behavior_note.RUNTIME_COMPILATION])
        graph.deselect_workspace_greater_than(self.workspace_limit_bytes)
        graph.check_support()

    def _refusal(self, operation: Operation, error: Exception) -> str:
        version = f"cuDNN {self.cudnn.version}"
        return f"{version} has no plan for {operation} on sm_{self.sm}: {reason_of(error)}; {_way_out(operation)}"


def no_engine_left(operation: Operation, reasons: Sequence[str]) -> str:
    """What to say where every candidate failed."""
    first = f", the first because {reasons[0]}" if reasons else ""
    return f"none of cuDNN's {len(reasons)} engines for {operation} is left{first}; {_way_out(operation)}"


def _way_out(operation: Operation) -> str:
    made = "cuDNN makes this kernel while it plans, which takes an NVIDIA driver and nvidia-cuda-nvrtc; "
    return f"{made if operation.compiled_when_planned else ''}use the triton backend, or another version: {INSTALL}"


def reason_of(error: Exception) -> str:
    """The first line of what cuDNN says, and each engine's first reason, once."""
    first, *lines = str(error).strip().splitlines() or ["no reason given"]
    reasons = [after for before, after in pairwise(lines) if before.startswith("{")]
    told = dict.fromkeys(line.partition("Reason: ")[2] or line for line in reasons)
    return "; ".join([first, *told])
