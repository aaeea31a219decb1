"""Graphs are traced without their weights, which are read when they are written."""

import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from saishiki.export.half_graph import half_graph
from saishiki.export.lazy_weights import LazyWeight, without_weights
from saishiki.export.onnx_graph import trace
from saishiki.models import read_checkpoint
from saishiki.models.streaming import derived, stream_strictly
from saishiki.runtime.signature import Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("batch", "64")),), (TensorSpec("y", "float32", ("batch", "64")),), {}
)
TOKENS = Signature(
    (TensorSpec("x", "float32", ("batch", "3", "64")),), (TensorSpec("y", "float32", ("batch", "3", "64")),), {}
)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


@pytest.fixture(scope="module")
def network() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network().eval()


def weights_of(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    return {name: value.const_value for name, value in model.graph.initializers.items()}


def test_without_weights_takes_them_away_and_gives_them_back(network):
    before = dict(network.named_parameters())
    with without_weights(network):
        assert network.first.weight.shape == (64, 64)
        with pytest.raises(RuntimeError):
            network.first.weight.sum().item()
    after = dict(network.named_parameters())
    assert all(after[name] is before[name] for name in before)


def test_without_weights_gives_them_back_after_an_error(network):
    weight = network.first.weight
    with pytest.raises(KeyError), without_weights(network):
        raise KeyError
    assert network.first.weight is weight


def test_trace_refers_to_the_weights_of_the_module(network):
    weights = weights_of(trace(network, SIGNATURE, {"batch": 2}))
    assert weights.keys() == dict(network.named_parameters()).keys()
    for name, parameter in network.named_parameters():
        assert isinstance(weights[name], LazyWeight)
        assert (weights[name].numpy() == parameter.detach().numpy()).all()


def test_trace_of_a_network_in_a_file_reads_no_large_weight(network, tmp_path):
    save_file(network.state_dict(), tmp_path / "network.safetensors")
    with torch.device("meta"):
        streamed = Network().eval()
    stream_strictly(streamed, read_checkpoint(tmp_path / "network.safetensors"))
    reads, read = [], streamed.first.weight.read
    streamed.first.weight.read = lambda: reads.append(True) or read()
    model = trace(streamed, SIGNATURE, {"batch": 2})
    half = half_graph(model, keep_fp32=())
    assert reads == []
    assert (weights_of(half)["first.weight"].numpy() == network.first.weight.detach().half().numpy()).all()
    assert (weights_of(model)["first.weight"].numpy() == network.first.weight.detach().numpy()).all()
    assert len(reads) == 2


def test_trace_writes_what_is_derived_as_one_weight(network):
    merged = Network()
    merged.second = network.second
    merged.first.weight = derived(lambda a, b: a + a @ b, network.first.weight, network.second.weight)
    merged.first.bias = network.first.bias
    weights = weights_of(trace(merged, SIGNATURE, {"batch": 2}))
    first, second = (network.first.weight.detach(), network.second.weight.detach())
    assert (weights["first.weight"].numpy() == (first + first @ second).numpy()).all()


def test_trace_transposes_a_weight_when_it_is_read(network):
    model = trace(network, TOKENS, {"batch": 2})
    assert "Transpose" not in {node.op_type for node in model.graph}
    large = [tensor for tensor in weights_of(model).values() if tensor.size == 64 * 64]
    assert [type(tensor) for tensor in large] == [LazyWeight, LazyWeight]
    assert (large[0].numpy() == network.first.weight.detach().numpy().T).all()
    assert large[0].identity == weights_of(trace(network, TOKENS, {"batch": 2}))[large[0].name].identity
    half = [tensor for tensor in weights_of(half_graph(model, keep_fp32=())).values() if tensor.size == 64 * 64]
    assert [tensor.dtype for tensor in half] == [ir.DataType.FLOAT16] * 2


class Twice(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.layer(x).relu()


def test_trace_computes_a_product_once(network):
    model = trace(Twice(network.first), TOKENS, {"batch": 2})
    assert [node.op_type for node in model.graph].count("MatMul") == 1
    assert len(weights_of(model)) == 2
