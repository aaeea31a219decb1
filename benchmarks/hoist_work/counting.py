"""Operations and bytes of a module's ONNX graph, traced at one size and without weights; operations also in PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import onnx
import onnx_ir as ir
import torch
from graph_roofline.layers import layers_of
from graph_roofline.node_work import total
from graph_roofline.sized_graph import sized, sized_graph
from roofline import Work
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from saishiki.export.onnx_graph import trace
from saishiki.export.weights_file import INLINE_BYTES
from saishiki.models.colorizediffusion.interface import ExportedModule
from saishiki.models.stored_tensors import StoredTensor
from saishiki.models.streaming import stored_parameter

FP16_PER_FP32 = 0.5


@dataclass(frozen=True)
class StepWork:
    """What one step does: matrix and vector operations, and bytes in fp16 where each layer reads and writes once."""

    matrix_gflop: float
    vector_gflop: float
    fused_mb: float
    layers: int

    @classmethod
    def of(cls, work: Work, layers: int) -> "StepWork":
        """From the work of an fp32 graph."""
        fused_mb = FP16_PER_FP32 * work.nbytes / 1e6
        return cls(work.matrix_flops / 1e9, work.vector_flops / 1e9, fused_mb, layers)


def step_work(module: ExportedModule, sizes: Mapping[str, int]) -> StepWork:
    """Counted from the graph; see :mod:`graph_roofline.layers` for what a layer is."""
    graph = sized_graph(sized(traced_at(module, sizes), {}))
    layers = layers_of(graph)
    return StepWork.of(total([layer.work for layer in layers]), len(layers))


def give_weights(module: nn.Module) -> None:
    """Gives a module on the meta device weights that take no memory: each repeats one number, another for each.

    Tracing looks at weights to fold constants, and takes those that are equal for one.
    """
    for index, (name, parameter) in enumerate(list(module.named_parameters())):
        owner, _, attribute = name.rpartition(".")
        read = partial(_repeated, 1.0 + index / 4096, parameter.shape)
        setattr(module.get_submodule(owner), attribute, stored_parameter(StoredTensor(parameter.detach(), read)))


def _repeated(value: float, shape: torch.Size) -> Tensor:
    return torch.tensor(value).expand(shape)


def eager_gflop(module: ExportedModule, sizes: Mapping[str, int]) -> float:
    """Matrix operations by PyTorch's own counter, on the meta device, where the module must be."""
    inputs = [torch.zeros(spec.shape(sizes), device="meta") for spec in module.signature.inputs]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return float(counter.get_total_flops()) / 1e9


def traced_at(module: ExportedModule, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """The module's graph with fixed sizes, which takes a third of the time that symbolic ones do.

    Its weights have shapes and no values.
    """
    model = trace(module, module.signature.at(sizes), sizes)
    _forget_weights(model)
    return ir.serde.serialize_model(model)


def _forget_weights(model: ir.Model) -> None:
    """Refers all that is no arithmetic on shapes to a file that nobody reads."""
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        if tensor.nbytes >= INLINE_BYTES:
            shape = ir.Shape(tensor.shape.numpy())
            value.const_value = ir.ExternalTensor("weights", 0, 0, tensor.dtype, shape=shape, name=name)
