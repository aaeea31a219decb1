"""A frontend that records what it is asked, and computes plans with numpy, from dims and strides, on host memory."""

import ctypes
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from saishiki.runtime.backends.cudnn.libraries import Cudnn

ENGINES = (("eng41_k2=7", 0), ("eng10_k2=5", 512), ("eng0", 0))


class NotSupportedError(Exception):
    """Derived from ``Exception`` alone, as the frontend's own."""


def names(title: str, *members: str) -> Any:
    return Enum(title, list(members))


@dataclass
class PlayedTensor:
    """What the graph knows of a tensor; ``value`` computes a virtual one."""

    log: list[str]
    dims: list[int] = field(default_factory=list)
    strides: list[int] = field(default_factory=list)
    dtype: Any = None
    uid: int = -1
    value: Callable[[dict[int, int]], np.ndarray] = field(default=lambda pointers: np.zeros(()), repr=False)
    is_output: bool = False

    def set_output(self, is_output: bool) -> "PlayedTensor":
        self.is_output = is_output
        return self

    def set_dim(self, dims: list[int]) -> "PlayedTensor":
        self.dims = dims
        return self

    def set_stride(self, strides: list[int]) -> "PlayedTensor":
        self.strides = strides
        return self

    def set_data_type(self, dtype: Any) -> "PlayedTensor":
        self.dtype = dtype
        return self

    def set_uid(self, uid: int) -> "PlayedTensor":
        self.uid = uid
        return self


def at(address: int, tensor: PlayedTensor) -> np.ndarray:
    """The half precision memory at an address, in cuDNN's order of dims."""
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.dims, tensor.strides, strict=True))
    flat = np.frombuffer((ctypes.c_uint8 * (2 * reach)).from_address(address), np.float16)
    return as_strided(flat, tensor.dims, [2 * stride for stride in tensor.strides])


class PlayedGraph:
    """One ``cudnn.pygraph``."""

    def __init__(self, frontend: "PlayedFrontend", options: dict[str, Any]) -> None:
        self.frontend, self.options, self.log = frontend, options, []
        self.tensors: dict[str, PlayedTensor] = {}
        self.made: list[PlayedTensor] = []
        self.built: set[int] = set()

    def _virtual(self, call: str, value: Callable[[dict[int, int]], np.ndarray]) -> PlayedTensor:
        self.log.append(call)
        self.made.append(PlayedTensor(self.log, value=value))
        return self.made[-1]

    def tensor(self, *, name: str, dim: list[int], stride: list[int], data_type: Any, uid: int) -> PlayedTensor:
        tensor = PlayedTensor(self.log, dim, stride, data_type, uid)
        tensor.value = lambda pointers: at(pointers[uid], tensor).astype(np.float32)
        self.tensors[name] = tensor
        return tensor

    def conv_fprop(
        self,
        image: PlayedTensor,
        weight: PlayedTensor,
        *,
        pre_padding: list[int],
        post_padding: list[int],
        stride: list[int],
        dilation: list[int],
    ) -> PlayedTensor:
        assert dilation == [1, 1]

        def value(pointers: dict[int, int]) -> np.ndarray:
            (top, left), (bottom, right) = pre_padding, post_padding
            x = np.pad(image.value(pointers), ((0, 0), (0, 0), (top, bottom), (left, right)))
            w = weight.value(pointers)
            windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
            return np.einsum("bchwrs,kcrs->bkhw", windows[:, :, :: stride[0], :: stride[1]], w)

        return self._virtual(f"conv {pre_padding} {post_padding} {stride}", value)

    def add(self, a: PlayedTensor, b: PlayedTensor) -> PlayedTensor:
        added = next(name for name, tensor in self.tensors.items() if tensor is b)
        return self._virtual(f"add {added}", lambda pointers: a.value(pointers) + b.value(pointers))

    def sdpa(
        self, q: PlayedTensor, k: PlayedTensor, v: PlayedTensor, *, attn_scale: float, generate_stats: bool
    ) -> tuple[PlayedTensor, None]:
        def value(pointers: dict[int, int]) -> np.ndarray:
            scores = q.value(pointers) @ k.value(pointers).swapaxes(-1, -2) * attn_scale
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            return weights / weights.sum(-1, keepdims=True) @ v.value(pointers)

        return self._virtual(f"sdpa {attn_scale} {generate_stats}", value), None

    def validate(self) -> None:
        self.log.append("validate")

    def build_operation_graph(self) -> None:
        self.log.append("build graph")

    def create_execution_plans(self, modes: Sequence[Any]) -> None:
        self.log.append(f"heuristics {[mode.name for mode in modes]}")

    def deselect_numeric_notes(self, notes: Sequence[Any]) -> None:
        self.log.append(f"without {sorted(note.name for note in notes)}")

    def select_numeric_notes(self, notes: Sequence[Any]) -> None:
        self.log.append(f"only {[note.name for note in notes]}")

    def deselect_behavior_notes(self, notes: Sequence[Any]) -> None:
        self.log.append(f"without {[note.name for note in notes]}")

    def deselect_workspace_greater_than(self, nbytes: int) -> None:
        self.log.append(f"workspace {nbytes}")

    def check_support(self) -> None:
        self.log.append("check")
        if self.frontend.refusal:
            raise NotSupportedError(self.frontend.refusal)

    def get_execution_plan_count(self) -> int:
        return len(self.frontend.engines)

    def get_plan_name_at_index(self, index: int) -> str:
        return self.frontend.engines[index][0]

    def build_plan_at_index(self, index: int) -> None:
        engine, _ = self.frontend.engines[index]
        if engine in self.frontend.unbuildable:
            raise NotSupportedError("Deselecting execution plan")
        self.built.add(index)

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        return self.frontend.engines[index][1] if index in self.built else 0

    def execute_plan_at_index(self, pointers: dict[int, int], workspace: int, index: int, handle: int) -> None:
        engine, _ = self.frontend.engines[index]
        self.frontend.executed.append((engine, workspace, handle))
        assert index in self.built
        if engine in self.frontend.unrunnable:
            raise RuntimeError("CUDNN_STATUS_EXECUTION_FAILED")
        (y,) = (tensor for tensor in self.made if tensor.is_output)
        with np.errstate(over="ignore"):
            at(pointers[y.uid], y)[...] = y.value(pointers).astype(np.float16)


@dataclass
class PlayedFrontend:
    """The module ``cudnn``: engines are (name, workspace bytes), in the order of the heuristics."""

    engines: list[tuple[str, int]] = field(default_factory=lambda: list(ENGINES))
    unbuildable: set[str] = field(default_factory=set)
    unrunnable: set[str] = field(default_factory=set)
    refusal: str = ""
    graphs: list[PlayedGraph] = field(default_factory=list)
    executed: list[tuple[str, int, int]] = field(default_factory=list)
    handles: list[str] = field(default_factory=list)

    data_type = names("data_type", "HALF", "FLOAT")
    heur_mode = names("heur_mode", "A", "B", "FALLBACK")
    behavior_note = names("behavior_note", "RUNTIME_COMPILATION", "CUBLASLT_DEPENDENCY")
    numerical_note = names(
        "numerical_note",
        *("TENSOR_CORE", "DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION", "FFT", "NONDETERMINISTIC", "WINOGRAD"),
    )
    cudnnGraphNotSupportedError = NotSupportedError  # noqa: N815

    def pygraph(self, **options: Any) -> PlayedGraph:
        self.graphs.append(PlayedGraph(self, options))
        return self.graphs[-1]

    def create_device_properties(self, content: str) -> Any:
        return SimpleNamespace(**json.loads(content))

    def create_handle(self) -> int:
        self.handles.append("create")
        return 77

    def set_stream(self, handle: int, stream: int) -> None:
        self.handles.append(f"stream {stream} of {handle}")

    def destroy_handle(self, handle: int) -> None:
        self.handles.append(f"destroy {handle}")

    @property
    def cudnn(self) -> Cudnn:
        return Cudnn(self, "9.19.0", "1.22.1")
