"""Tiny graphs to build engines of."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saishiki.export.engines import Target
from saishiki.runtime.signature import Profile, Signature, TensorSpec

SM89 = Target("tensorrt-rtx", "sm89")


@dataclass(frozen=True)
class Case:
    """A graph on disk, and what is declared of it."""

    onnx: Path
    signature: Signature
    profiles: tuple[Profile, ...]
    target: Target = SM89

    def but(self, **changes: Any) -> "Case":
        return replace(self, **changes)

    def arguments(self, output: Path) -> dict[str, Any]:
        """The arguments of ``build_engine``."""
        return vars(self) | {"output": output}


@pytest.fixture
def conv_case(tmp_path: Path) -> Case:
    """SiLU(conv(x) + bias) at half the height and width, with a static second input, over two profiles."""
    helper = _onnx().helper
    signature = Signature(
        inputs=(
            TensorSpec("x", "float16", ("batch", "8", "height", "width")),
            TensorSpec("bias", "float16", ("1", "16", "1", "1")),
        ),
        outputs=(TensorSpec("y", "float16", ("batch", "16", "height/2", "width/2")),),
        multiples={"height": 2, "width": 2},
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Add", ["c", "bias"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["s"]),
        helper.make_node("Mul", ["a", "s"], ["y"]),
    ]
    profiles = (
        Profile(*({"batch": batch, "height": 32, "width": 32} for batch in (1, 1, 2))),
        Profile(*({"batch": 1, "height": size, "width": size} for size in (32, 64, 96))),
    )
    return Case(_saved(tmp_path / "conv.onnx", nodes, signature, [_weights("w", 16, 8, 3, 3)]), signature, profiles)


@pytest.fixture
def attention_case(tmp_path: Path) -> Callable[..., Case]:
    """Makes self-attention with two heads, over two profiles; its ``Attention`` takes the projections ``inputs``."""

    def case(*, head_dim: int = 64, dtype: str = "float16", inputs: str = "qkv") -> Case:
        helper = _onnx().helper
        width = 2 * head_dim
        x, y = (TensorSpec(name, dtype, ("batch", "tokens", str(width))) for name in "xy")
        signature = Signature(inputs=(x,), outputs=(y,), multiples={})
        projections = tuple(dict.fromkeys(inputs))
        # Named like a fused kernel, which must not count as one.
        nodes = [helper.make_node("MatMul", ["x", f"w{name}"], [name], name=f"mha_{name}") for name in projections]
        nodes.append(helper.make_node("Attention", list(inputs), ["y"], q_num_heads=2, kv_num_heads=2))
        weights = [_weights(f"w{name}", width, width, dtype=dtype) for name in projections]
        profiles = (
            Profile(*({"batch": batch, "tokens": 64} for batch in (1, 1, 2))),
            Profile(*({"batch": 1, "tokens": tokens} for tokens in (64, 128, 256))),
        )
        return Case(_saved(tmp_path / "attention.onnx", nodes, signature, weights), signature, profiles)

    return case


@pytest.fixture
def weights_in_a_file(tmp_path: Path) -> Case:
    """A chain of layers whose weights, 24 MB, lie in ``chain.data``."""
    names = [f"w{i}" for i in range(12)]
    x, y = (TensorSpec(name, "float16", ("batch", "1024")) for name in "xy")
    values = ["x", *(f"h{i}" for i in range(len(names) - 1)), "y"]
    nodes = [_onnx().helper.make_node("MatMul", [values[i], name], [values[i + 1]]) for i, name in enumerate(names)]
    sizes = {"batch": 4}
    signature = Signature(inputs=(x,), outputs=(y,), multiples={})
    path = _saved(tmp_path / "chain.onnx", nodes, signature, [_weights(name, 1024, 1024) for name in names])
    _onnx().save(_onnx().load(path), path, save_as_external_data=True, location="chain.data", size_threshold=0)
    return Case(path, signature, (Profile(sizes, sizes, sizes),))


@pytest.fixture
def unknown_operator_case(conv_case: Case) -> Case:
    """A graph whose last operator does not exist."""
    onnx = _onnx()
    model = onnx.load(conv_case.onnx)
    model.graph.node[-1].op_type = "Sparkle"
    onnx.save(model, conv_case.onnx)
    return conv_case


def _onnx() -> Any:
    return pytest.importorskip("onnx", reason="needs onnx: pip install 'saishiki[export]'")


def _weights(name: str, *shape: int, dtype: str = "float16") -> Any:
    values = np.random.default_rng(len(name)).standard_normal(shape) * 0.05
    return _onnx().numpy_helper.from_array(values.astype(dtype), name)


def _saved(path: Path, nodes: list[Any], signature: Signature, weights: list[Any]) -> Path:
    helper = _onnx().helper
    inputs, outputs = ([_info(spec) for spec in specs] for specs in (signature.inputs, signature.outputs))
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    _onnx().save(model, path)
    return path


def _info(spec: TensorSpec) -> Any:
    helper = _onnx().helper
    shape = [int(dim) if dim.isdigit() else dim for dim in spec.dims]
    return helper.make_tensor_value_info(spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), shape)
