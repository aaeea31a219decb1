"""The TensorRT network of an ONNX graph, checked against the signature of its module."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saishiki.export.engines.mapped_weights import MappedWeights
from saishiki.export.engines.request import WAY_OUT, EngineBuildError
from saishiki.runtime.signature import Profile, Signature, Sizes, TensorSpec

# TensorRT's names of its data types, in numpy's words.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
_FUSABLE = {"HALF", "BF16"}


def network_from_onnx(onnx: Path, weights: MappedWeights, *, builder: Any, logger: Any, trt: Any) -> Any:
    """A strongly typed network: the graph decides every precision. Raises ``EngineBuildError`` for a bad graph.

    Until its engine is built, the network reads its weights where they are mapped.
    """
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not _parse(parser, onnx, weights):
        errors = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
        raise EngineBuildError(f"the ONNX parser refuses it: {'; '.join(errors) or 'no reason given'}; {WAY_OUT}")
    return network


def _parse(parser: Any, onnx: Path, weights: MappedWeights) -> bool:
    try:
        model = onnx.read_bytes()
    except OSError as error:
        raise EngineBuildError(f"the graph cannot be read: {error.strerror}: {onnx}") from error
    return bool(
        parser.load_model_proto(model, str(onnx))
        and all(parser.load_initializer(name, *place) for name, place in weights.places(model, onnx.parent).items())
        and parser.parse_model_proto()
    )


def _parser_error(error: Any) -> str:
    node = f" (node {error.node_name()!r}, operator {error.node_operator()})" if error.node_operator() else ""
    return f"{error.desc().strip()}{node}"


def check_network(network: Any, signature: Signature, profiles: Sequence[Profile]) -> None:
    """Raises ``EngineBuildError`` where the network's inputs and outputs are not those of the signature."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    corners = [corner for profile in profiles for corner in profile.corners()]
    _check_tensors("inputs", inputs, signature.inputs, corners)
    _check_tensors("outputs", outputs, signature.outputs, corners)


def _check_tensors(kind: str, tensors: list[Any], specs: tuple[TensorSpec, ...], corners: list[Sizes]) -> None:
    by_name = {tensor.name: tensor for tensor in tensors}
    expected = {spec.name for spec in specs}
    if by_name.keys() != expected:
        raise EngineBuildError(f"the graph's {kind} are {sorted(by_name)}, the signature's {sorted(expected)}")
    for spec in specs:
        _check_tensor(by_name[spec.name], spec, corners)


def _check_tensor(tensor: Any, spec: TensorSpec, corners: list[Sizes]) -> None:
    dtype, shape = _DTYPES.get(tensor.dtype.name, tensor.dtype.name), tuple(tensor.shape)
    wrong = [corner for corner in corners if not _matches(shape, spec.shape(corner))]
    if dtype != spec.dtype or len(shape) != len(spec.dims) or wrong:
        at = f" at {dict(wrong[0])}" if wrong else ""
        raise EngineBuildError(f"the graph has {tensor.name}: {dtype} {shape}, the signature {spec}{at}")


def _matches(graph: tuple[int, ...], asked: tuple[int, ...]) -> bool:
    """Whether the shapes agree where the graph states a length; -1 stands for any."""
    return all(length in (-1, wanted) for length, wanted in zip(graph, asked, strict=False))


def allow_decomposed_attention(network: Any, trt: Any) -> None:
    """Lets the builder split attentions for which it has no fused kernel; without it the build fails on them."""
    for layer in _attention_layers(network, trt):
        layer.__class__ = trt.IAttentionInputLayer
        layer.attention.decomposable = True


def count_fusable_attentions(network: Any, trt: Any) -> int:
    """``Attention`` operators in 16 bits; the builder has no fused kernel for others."""
    return sum(layer.get_input(0).dtype.name in _FUSABLE for layer in _attention_layers(network, trt))


def _attention_layers(network: Any, trt: Any) -> list[Any]:
    layers = (network.get_layer(i) for i in range(network.num_layers))
    return [layer for layer in layers if layer.type == trt.LayerType.ATTENTION_INPUT]
