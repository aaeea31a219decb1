"""All graphs of a network: in which precisions, in which files, and at sizes that only some modules have."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from saishiki.export.bundle_writer import BundleDraft
from saishiki.export.engines import build_engine, parse_targets
from saishiki.export.graphs import precisions_of, trace_sizes, write_graphs
from saishiki.export.progress import Silent
from saishiki.models.animediffusion import ANIMEDIFFUSION
from saishiki.runtime.signature import Profile, Signature, TensorSpec, profiles_for

LATENT = ("height/8", "width/8")


class Denoiser(nn.Module):
    """What a real one does to shapes: slots in the batch, token maps of two levels, a context of any length."""

    def __init__(self, conv: nn.Conv2d, down: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.down = conv, down

    def forward(self, x: Tensor, hint: Tensor, fine: Tensor, coarse: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        h = self.conv(torch.cat([x, x])) + hint
        tokens = h.flatten(2).transpose(1, 2)
        foreground = torch.cat([fine, fine]).unsqueeze(-1) > 0.5
        tokens = torch.where(foreground, tokens, tokens * 2)
        keys = torch.cat([context, context]).unsqueeze(1)
        seen = nn.functional.scaled_dot_product_attention(tokens.unsqueeze(1), keys, keys * 0.5)
        h = self.down((tokens + seen.squeeze(1)).transpose(1, 2).unflatten(2, h.shape[2:]))
        foreground = torch.cat([coarse, coarse]).unflatten(1, h.shape[2:]).unsqueeze(1) > 0.5
        return torch.where(foreground, h, -h), tokens


SIGNATURE = Signature(
    inputs=(
        TensorSpec("x", "float32", ("batch", "8", *LATENT)),
        TensorSpec("hint", "float32", ("2*batch", "8", *LATENT)),
        TensorSpec("fine", "float32", ("batch", "height*width/64")),
        TensorSpec("coarse", "float32", ("batch", "height*width/256")),
        TensorSpec("context", "float32", ("batch", "tokens", "8")),
    ),
    outputs=(
        TensorSpec("prediction", "float32", ("2*batch", "8", "height/16", "width/16")),
        TensorSpec("features", "float32", ("2*batch", "height*width/64", "8")),
    ),
    multiples={"height": 16, "width": 16},
)


@dataclass(frozen=True)
class Model:
    """As much of a LoadedModel as graphs need."""

    modules: dict[str, nn.Module]
    weight_groups: dict[str, str]

    @property
    def signatures(self) -> dict[str, Signature]:
        return dict.fromkeys(self.modules, SIGNATURE)


def with_tokens(profile: Profile) -> Profile:
    points = zip((profile.min, profile.opt, profile.max), (5, 7, 9), strict=True)
    return Profile(*({**point, "tokens": tokens} for point, tokens in points))


FAMILY = replace(ANIMEDIFFUSION, complete=with_tokens)


@pytest.fixture(scope="module")
def model() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv, down = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, stride=2)
        other = nn.Conv2d(8, 8, 3, padding=1, stride=2)
    modules = {"one": Denoiser(conv, down), "two": Denoiser(conv, other), "alone": Denoiser(conv, down)}
    return Model({name: module.eval() for name, module in modules.items()}, {"one": "pair", "two": "pair"})


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    draft = BundleDraft(tmp_path_factory.mktemp("draft"))
    return draft.path, write_graphs(draft, model, FAMILY, (), ("fp32", "fp16"), Silent())


def inputs_at(**sizes: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {spec.name: rng.standard_normal(spec.shape(sizes), dtype=np.float32) for spec in SIGNATURE.inputs}


@pytest.mark.parametrize(
    ("asked", "kept", "expected"),
    [
        (("fp32", "fp16"), (), ("fp32", "fp16")),
        (("fp16",), (), ("fp16",)),
        (("fp32",), (), ("fp32",)),
        (("fp16",), ("m",), ("fp32",)),
        (("fp16",), ("m.part",), ("fp16",)),
    ],
)
def test_precisions_of(asked, kept, expected):
    assert precisions_of("m", asked, kept) == expected


def test_trace_sizes_come_from_multiples_and_family():
    assert trace_sizes(SIGNATURE, FAMILY) == {"batch": 2, "height": 128, "width": 192, "tokens": 7}


def test_write_graphs_shares_weights_within_a_group(written):
    path, entries = written
    assert sorted(file.name for file in (path / "onnx").iterdir()) == sorted(
        [f"{name}.{precision}.onnx" for name in ("one", "two", "alone") for precision in ("fp32", "fp16")]
        + [f"{group}.{precision}.onnx.data" for group in ("pair", "alone") for precision in ("fp32", "fp16")]
    )
    assert entries["one"].graphs["fp32"].weights == entries["two"].graphs["fp32"].weights
    assert list(entries["one"].graphs) == ["fp32", "fp16"]
    convolution = 8 * 8 * 9
    # Biases are too small for the file.
    assert entries["one"].graphs["fp32"].weights.bytes == 3 * convolution * 4
    assert entries["alone"].graphs["fp16"].weights.bytes == 2 * convolution * 2


@pytest.mark.parametrize("name", ["one", "two", "alone"])
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"batch": 1, "height": 16, "width": 32, "tokens": 3}, id="1x16x32"),
        pytest.param({"batch": 3, "height": 64, "width": 16, "tokens": 9}, id="3x64x16"),
    ],
)
def test_graphs_compute_the_same_at_derived_sizes(model, written, name, sizes):
    path, _ = written
    inputs = inputs_at(**sizes)
    with torch.inference_mode():
        wanted = model.modules[name](**{key: torch.from_numpy(value) for key, value in inputs.items()})
    for precision, tolerance in (("fp32", 1e-5), ("fp16", 2e-2)):
        session = onnxruntime.InferenceSession(path / "onnx" / f"{name}.{precision}.onnx")
        for got, want in zip(session.run(None, inputs), wanted, strict=True):
            np.testing.assert_allclose(got, want.numpy(), atol=tolerance)


def test_write_graphs_in_one_precision(model, tmp_path):
    alone = replace(model, modules={"alone": model.modules["alone"]})
    entries = write_graphs(BundleDraft(tmp_path), alone, FAMILY, (), ("fp16",), Silent())
    assert list(entries["alone"].graphs) == ["fp16"]
    names = [Path(file).name for file in (tmp_path / "onnx").iterdir()]
    assert sorted(names) == ["alone.fp16.onnx", "alone.fp16.onnx.data"]


def test_tensorrt_rtx_builds_a_profile_of_derived_sizes(written, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install 'saishiki[rtx]'")
    path, _ = written
    least, most = {"batch": 1, "height": 32, "width": 32}, {"batch": 2, "height": 64, "width": 96}
    profiles = profiles_for(SIGNATURE, (with_tokens(Profile(least, least, most)),))
    (target,) = parse_targets("rtx", ())
    report = build_engine(
        path / "onnx" / "one.fp16.onnx", signature=SIGNATURE, profiles=profiles, target=target, output=tmp_path / "e"
    )
    assert report.profiles == 1
    assert report.bytes > 0


def test_a_manifest_lists_shared_weights_once(smallest_export):
    manifest = smallest_export.manifest
    denoiser = manifest.modules["denoiser"]
    twice = replace(manifest, modules={**manifest.modules, "variant": denoiser})
    assert twice.files() == manifest.files()
    assert denoiser.graphs["fp16"].weights in twice.files()
