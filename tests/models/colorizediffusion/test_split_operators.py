"""Split cross-attention in an exported graph: one node of ours, and the numbers of plain torch."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from saishiki.export.onnx_graph import trace, write_graph
from saishiki.export.weights_file import weights_file
from saishiki.models.colorizediffusion.split_operators import split_attend, split_project
from saishiki.runtime.signature import Signature, TensorSpec

BATCH, HEADS, KEYS, WIDTH = 2, 2, 12, 16


class Merging(nn.Module):
    """Both regions' queries, and a share that is an input."""

    def forward(self, q, q_bg, k, v, mask, merge_scale):
        options = {"heads": HEADS, "selection": "foreground_above", "threshold": 0.5, "q_bg": q_bg}
        return split_attend(q, k, v, mask, merge_scale=merge_scale, **options)


class Choosing(nn.Module):
    """Each token's own region, and its projection."""

    def __init__(self):
        super().__init__()
        self.fg, self.bg = (nn.Parameter(torch.randn(WIDTH, WIDTH), requires_grad=False) for _ in range(2))

    def forward(self, q, k, v, mask):
        q = split_project(q, self.fg, self.bg, mask, selection="foreground_above", threshold=0.5)
        options = {"heads": HEADS, "selection": "foreground_above", "threshold": 0.5, "q_bg": None}
        return split_attend(q, k, v, mask, merge_scale=0.0, **options)


def signature_of(*names):
    tokens = {"k": str(KEYS), "v": str(KEYS)}
    specs = [TensorSpec(name, "float32", ("batch", tokens.get(name, "tokens"), str(WIDTH))) for name in names]
    specs.append(TensorSpec("mask", "float32", ("batch", "tokens")))
    out = TensorSpec("out", "float32", ("batch", "tokens", str(WIDTH)))
    return Signature(tuple(specs), (out,), {})


MERGING = signature_of("q", "q_bg", "k", "v")
MERGING = Signature((*MERGING.inputs, TensorSpec("merge_scale", "float32", ("1",))), MERGING.outputs, {})


def exported(module, signature, folder):
    model = trace(module, signature, {"batch": 2, "tokens": 7})
    with weights_file(folder / "weights") as weights:
        write_graph(model, signature, folder / "graph.onnx", weights)
    return [node.op_type for node in model.graph], onnxruntime.InferenceSession(folder / "graph.onnx")


def random_inputs(signature, tokens):
    generator = torch.Generator().manual_seed(0)
    shapes = {spec.name: spec.shape({"batch": 3, "tokens": tokens}) for spec in signature.inputs}
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return inputs | {"mask": (inputs["mask"] > 0).float()}


def check(session, module, inputs):
    (got,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    want = module(**inputs).numpy()
    np.testing.assert_allclose(got, want, atol=2e-6)
    return want


def test_merging_is_one_node_for_every_share(tmp_path):
    module = Merging()
    operators, session = exported(module, MERGING, tmp_path)
    assert operators == ["MaskedSplitCrossAttentionMerge"]
    inputs = random_inputs(MERGING, 9)
    results = [check(session, module, inputs | {"merge_scale": torch.tensor([share])}) for share in (0.0, 0.3, 1.0)]
    assert np.abs(results[0] - results[1]).max() > 0.1
    # With the whole share every token takes what the background gives.
    everywhere_bg = module(**inputs | {"mask": torch.zeros(3, 9), "merge_scale": torch.tensor([0.0])}).numpy()
    np.testing.assert_allclose(results[2], everywhere_bg, atol=2e-6)


def test_choosing_is_one_node_and_a_projection(tmp_path):
    torch.manual_seed(0)
    module, signature = Choosing(), signature_of("q", "k", "v")
    operators, session = exported(module, signature, tmp_path)
    assert operators == ["SplitProjection", "MaskedSplitCrossAttention"]
    check(session, module, random_inputs(signature, 5))


@pytest.mark.parametrize("share", [0.3, torch.tensor([0.3])], ids=["number", "tensor"])
def test_outside_of_an_export_it_is_plain_torch(share):
    inputs = random_inputs(MERGING, 5) | {"merge_scale": share}
    assert torch.isfinite(Merging()(**inputs)).all()
