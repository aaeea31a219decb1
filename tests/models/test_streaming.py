"""Networks whose weights stay in the checkpoint compute what the same networks with weights in memory compute."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from saishiki.models import Checkpoint, CheckpointError, read_checkpoint
from saishiki.models.checkpoints import load_strictly
from saishiki.models.streaming import StoredParameter, derived, stream_strictly, streamed_weights, value_of


class Network(nn.Module):
    """Uses weights in every way a network may: by modules, alone, sliced, transposed, and one module's in another."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 8)
        self.linear = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer_norm, self.group_norm = nn.LayerNorm(8), nn.GroupNorm(2, 8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.position = nn.Parameter(torch.randn(4, 8))
        self.tied = self.linear
        self.register_buffer("scale", torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.tied(self.linear(x) * self.scale) + self.position[None] + self.embedding(torch.arange(4))
        h = h + self.attention(h, h, h, need_weights=False)[0].to(self.linear.weight.dtype)
        h = self.layer_norm(h) @ self.linear.weight.T + F.linear(h, self.linear.weight[:, :8], self.linear.bias)
        return self.conv(self.group_norm(h.transpose(1, 2).unflatten(2, (2, 2)))) + self.linear.weight.shape[0]


def on_meta() -> Network:
    with torch.device("meta"):
        return Network().eval()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        state = Network().state_dict()
    path = tmp_path / "network.safetensors"
    save_file({key: tensor.half() for key, tensor in state.items() if not key.startswith("tied")}, path)
    tensors = read_checkpoint(path).tensors
    tied = {key.replace("linear", "tied"): entry for key, entry in tensors.entries.items() if key.startswith("linear")}
    return Checkpoint(path, "", type(tensors)({**tensors.entries, **tied}), {})


@pytest.fixture
def x() -> Tensor:
    return torch.randn((3, 4, 8), generator=torch.Generator().manual_seed(0))


def test_streamed_weights_give_the_numbers_of_loaded_ones(checkpoint, x):
    streamed, loaded = on_meta(), on_meta()
    stream_strictly(streamed, checkpoint)
    load_strictly(loaded, checkpoint)
    with torch.inference_mode(), streamed_weights():
        # PyTorch takes a shortcut through attention that looks at the device of its weights, and rounds otherwise.
        torch.testing.assert_close(streamed(x), loaded(x), rtol=0, atol=5e-6)
        assert torch.equal(streamed.conv(x.view(3, 8, 2, 2)), loaded.conv(x.view(3, 8, 2, 2)))
        assert torch.equal(streamed.linear(x), loaded.linear(x))


def test_a_streamed_network_holds_buffers_and_no_weights(checkpoint):
    network = on_meta()
    stream_strictly(network, checkpoint)
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert torch.equal(network.scale, checkpoint.tensors["scale"].float())


def test_a_streamed_network_says_so_outside_of_streamed_weights(checkpoint, x):
    network = on_meta()
    stream_strictly(network, checkpoint)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        network(x)


def test_weights_are_read_when_they_are_used_and_not_kept(checkpoint, x):
    network = on_meta()
    stream_strictly(network, checkpoint)
    reads, read = [], network.conv.weight.read
    network.conv.weight.read = lambda: reads.append(True) or read()
    with torch.inference_mode(), streamed_weights():
        first = network(x)
        assert len(reads) == 1
        network.conv.weight.read = lambda: read() * 2
        assert not torch.equal(network(x), first)


def test_stream_strictly_names_what_does_not_fit(checkpoint):
    entries = dict(checkpoint.tensors.entries)
    entries["extra"] = entries.pop("conv.weight")
    with pytest.raises(CheckpointError, match=r"missing: conv\.weight; unknown: extra"):
        stream_strictly(on_meta(), Checkpoint(checkpoint.path, "", type(checkpoint.tensors)(entries), {}))


def test_stream_strictly_wants_a_file(checkpoint):
    with pytest.raises(TypeError, match="expected tensors that are still in a file, got dict"):
        stream_strictly(on_meta(), Checkpoint(checkpoint.path, "", dict(checkpoint.tensors), {}))


def merged(weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return weight + up @ down


def test_derived_of_stored_weights_is_computed_when_it_is_needed(checkpoint, x):
    streamed, loaded = on_meta(), on_meta()
    stream_strictly(streamed, checkpoint)
    load_strictly(loaded, checkpoint)
    weights = [
        derived(merged, net.linear.weight, derived(torch.t, net.position), net.position) for net in (streamed, loaded)
    ]
    assert isinstance(weights[0], StoredParameter)
    assert weights[0].device.type == "meta"
    assert not isinstance(weights[1], StoredParameter)
    assert torch.equal(value_of(weights[0]), weights[1])
    with torch.inference_mode(), streamed_weights():
        assert torch.equal(F.linear(x, weights[0]), F.linear(x, weights[1]))


def test_derived_names_shapes_that_do_not_fit(checkpoint):
    network = on_meta()
    stream_strictly(network, checkpoint)
    with pytest.raises(RuntimeError, match=r"size|shape|dim"):
        derived(merged, network.linear.weight, network.position, network.position)
