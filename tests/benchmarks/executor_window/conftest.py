"""cuDNN's graph API on the CPU: graphs are written down, and run in torch on the addresses they are given."""

import ctypes
import importlib.machinery
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from executor_window import cudnn_library

TORCH_TYPES = {"HALF": torch.float16, "FLOAT": torch.float32}
BYTES = {"HALF": 2, "FLOAT": 4}


class NotSupportedError(Exception):
    """As cuDNN's own: no RuntimeError."""


@dataclass
class Tensor:
    """A node, or what a graph is given."""

    op: str = ""
    inputs: tuple[Any, ...] = ()
    padding: Sequence[int] = (0, 0)
    dim: Sequence[int] = ()
    stride: Sequence[int] = ()
    data_type: str = ""
    uid: int = -1
    is_output: bool = False

    def set_output(self, is_output: bool) -> "Tensor":
        self.is_output = is_output
        return self

    def set_data_type(self, data_type: str) -> "Tensor":
        self.data_type = data_type
        return self

    def set_uid(self, uid: int) -> "Tensor":
        self.uid = uid
        return self

    def set_dim(self, dim: Sequence[int]) -> "Tensor":
        self.dim = dim
        return self

    def set_stride(self, stride: Sequence[int]) -> "Tensor":
        self.stride = stride
        return self

    def at(self, address: int) -> torch.Tensor:
        """The memory it stands for."""
        elements = 1 + sum((d - 1) * s for d, s in zip(self.dim, self.stride, strict=True))
        memory = (ctypes.c_byte * (elements * BYTES[self.data_type])).from_address(address)
        return torch.frombuffer(memory, dtype=TORCH_TYPES[self.data_type]).as_strided(self.dim, self.stride)


@dataclass
class Graph:
    """Candidates are 0 to 3: 1 cannot be built, and 0 too where ``cudnn.first_fails``."""

    cudnn: "FakeCudnn"
    nodes: list[Tensor] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    built: set[int] = field(default_factory=set)
    precompiled: bool = False

    def tensor(self, *, dim: Sequence[int], stride: Sequence[int], data_type: str, uid: int) -> Tensor:
        return Tensor(dim=dim, stride=stride, data_type=data_type, uid=uid)

    def _node(self, op: str, *inputs: Tensor, **settings: Any) -> Tensor:
        self.nodes.append(Tensor(op, inputs, **settings))
        return self.nodes[-1]

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return self._node("add", a, b)

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        return self._node("mul", a, b)

    def swish(self, x: Tensor) -> Tensor:
        return self._node("swish", x)

    def reduction(self, x: Tensor, *, mode: str) -> Tensor:
        assert mode == "ADD"
        return self._node("reduction", x)

    def conv_fprop(
        self, x: Tensor, w: Tensor, *, padding: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
    ) -> Tensor:
        assert list(stride) == list(dilation) == [1, 1]
        return self._node("conv", x, w, padding=padding)

    def validate(self) -> None:
        self.log.append("validate")

    def build_operation_graph(self) -> None:
        self.log.append("build_operation_graph")

    def create_execution_plans(self, modes: Sequence[str]) -> None:
        assert list(modes) == ["A", "FALLBACK"]
        self.log.append("create_execution_plans")

    def deselect_behavior_notes(self, notes: Sequence[str]) -> None:
        assert list(notes) == ["RUNTIME_COMPILATION"]
        self.precompiled = True

    def check_support(self) -> None:
        self.log.append("check_support")
        ops = [node.op for node in self.nodes]
        if self.precompiled and ("reduction" in ops or "swish" in ops):
            raise NotSupportedError("No valid engine configs\nand more words")

    def get_execution_plan_count(self) -> int:
        return 4

    def get_plan_name_at_index(self, index: int) -> str:
        return f"eng{index}"

    def build_plan_at_index(self, index: int) -> None:
        if index == 1 or (index == 0 and self.cudnn.first_fails):
            raise NotSupportedError(f"engine {index} is not for this device")
        self.built.add(index)

    def build_plans(self) -> None:
        self.built.add(0)

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        assert index in self.built
        return 16 * index

    def get_workspace_size(self) -> int:
        return 0

    def execute_plan_at_index(self, pack: dict[int, int], workspace: int, index: int, handle: int) -> None:
        assert index in self.built
        assert self.log == ["validate", "build_operation_graph", "create_execution_plans", "check_support"]
        self._execute(pack, workspace, handle)

    def execute(self, pack: dict[int, int], workspace: int, handle: int) -> None:
        self._execute(pack, workspace, handle)

    def _execute(self, pack: dict[int, int], workspace: int, handle: int) -> None:
        assert workspace
        assert handle == self.cudnn.handle
        for node in self.nodes:
            if node.is_output:
                out = self._value(node, pack) * self.cudnn.factor
                if not node.dim:  # an image in NHWC, as large as the residual or the input
                    n, c, h, w = out.shape
                    node.dim, node.stride = (n, c, h, w), (c * h * w, 1, c * w, c)
                node.at(pack[node.uid]).copy_(out)

    def _value(self, node: Tensor, pack: dict[int, int]) -> torch.Tensor:
        if not node.op:
            return node.at(pack[node.uid]).double()
        values = [self._value(each, pack) for each in node.inputs]
        if node.op == "conv":
            return F.conv2d(*values, padding=list(node.padding))
        if node.op == "swish":
            return F.silu(values[0])
        if node.op == "reduction":
            return values[0].sum((2, 3), keepdim=True)
        return values[0] + values[1] if node.op == "add" else values[0] * values[1]

    def serialize(self) -> list[int]:
        self.cudnn.saved.append(self)
        return list(f"plan {len(self.cudnn.saved) - 1}".encode())

    def deserialize(self, handle: int, plan: list[int]) -> None:
        assert handle == self.cudnn.handle
        assert isinstance(plan, list)
        self.nodes = self.cudnn.saved[int(bytes(plan).split()[1])].nodes


class FakeCudnn(types.ModuleType):
    """The module ``cudnn``. ``factor`` makes all results wrong."""

    __version__ = "1.22.1"
    cudnnGraphNotSupportedError = NotSupportedError  # noqa: N815
    data_type = types.SimpleNamespace(HALF="HALF", FLOAT="FLOAT")
    heur_mode = types.SimpleNamespace(A="A", FALLBACK="FALLBACK")
    behavior_note = types.SimpleNamespace(RUNTIME_COMPILATION="RUNTIME_COMPILATION")
    reduction_mode = types.SimpleNamespace(ADD="ADD")

    def __init__(self) -> None:
        super().__init__("cudnn")
        self.__spec__ = importlib.machinery.ModuleSpec("cudnn", None)
        self.handle, self.factor, self.first_fails = 7, 1.0, False
        self.saved: list[Graph] = []
        self.setups: list[dict[str, Any]] = []

    def create_handle(self) -> int:
        return self.handle

    def backend_version_string(self) -> str:
        return "9.19.0"

    def create_device_properties(self, text: Any) -> Any:
        return types.SimpleNamespace(serialize=lambda: text)

    def pygraph(self, **setup: Any) -> Graph:
        self.setups.append(setup)
        return Graph(self)


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    """The parts are made for a process of their own, and leave torch's settings changed."""
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(grad)


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> FakeCudnn:
    """Installed as the module of that name."""
    fake = FakeCudnn()
    monkeypatch.setitem(sys.modules, "cudnn", fake)
    monkeypatch.setattr(cudnn_library, "LIBRARIES", ())
    return fake


@pytest.fixture
def no_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where cudnn-frontend is not installed."""
    monkeypatch.setattr(cudnn_library.importlib.util, "find_spec", lambda name: None)
