"""Graphs that share a file of weights: what is in it, and that every engine finds its own weights in it."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from saishiki.export.engines import build_engine, parse_targets
from saishiki.export.half_graph import half_graph
from saishiki.export.onnx_graph import trace, write_graph
from saishiki.export.weights_file import INLINE_BYTES, weights_file
from saishiki.runtime.signature import Profile, Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("batch", "64")),), (TensorSpec("y", "float32", ("batch", "64")),), {}
)
SIZES = {"batch": 2}
BYTES = 64 * 64 * 4
BIAS_BYTES = 64 * 4


class Variant(nn.Module):
    """The common layer, and one of its own where it has one."""

    def __init__(self, common: nn.Linear, own: nn.Linear | None) -> None:
        super().__init__()
        self.common, self.own = common, own

    def forward(self, x: Tensor) -> Tensor:
        h = self.common(x)
        return h if self.own is None else self.own(h.relu())


@pytest.fixture(scope="module")
def variants() -> dict[str, Variant]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        common, own = nn.Linear(64, 64), nn.Linear(64, 64)
    # The third has the own layer's values, but parameters of its own.
    copy = nn.Linear(64, 64)
    copy.load_state_dict(own.state_dict())
    return {"plain": Variant(common, None), "longer": Variant(common, own), "copied": Variant(common, copy)}


def write(variants: dict[str, Variant], folder: Path, *, half: bool = False) -> Path:
    path = folder / "group.data"
    with weights_file(path) as weights:
        for name, module in variants.items():
            graph = trace(module, SIGNATURE, SIZES)
            write_graph(half_graph(graph, keep_fp32=()) if half else graph, SIGNATURE, folder / f"{name}.onnx", weights)
    return path


@pytest.fixture(scope="module")
def folder(variants: dict[str, Variant], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    write(variants, folder)
    return folder


def test_weights_file_holds_every_distinct_weight_once(folder):
    assert (folder / "group.data").stat().st_size == 2 * (BYTES + BIAS_BYTES)
    assert sorted(path.name for path in folder.iterdir()) == ["copied.onnx", "group.data", "longer.onnx", "plain.onnx"]


def test_weights_file_of_half_graphs_is_half_as_large(variants, tmp_path):
    # A bias is then too small for the file.
    assert BIAS_BYTES // 2 < INLINE_BYTES
    assert write(variants, tmp_path, half=True).stat().st_size == BYTES


def test_weights_file_is_the_same_bytes_again(variants, folder, tmp_path):
    write(variants, tmp_path)
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["plain", "longer", "copied"])
def test_onnx_runtime_finds_each_graphs_weights(variants, folder, name):
    x = np.random.default_rng(0).standard_normal((3, 64), dtype=np.float32)
    (got,) = onnxruntime.InferenceSession(folder / f"{name}.onnx").run(None, {"x": x})
    with torch.inference_mode():
        np.testing.assert_allclose(got, variants[name](torch.from_numpy(x)).numpy(), atol=1e-5)


def test_onnx_runtime_of_another_weights_file_computes_otherwise(variants, folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((tmp_path / "group.data").read_bytes())
    content[3] ^= 0x40
    (tmp_path / "group.data").write_bytes(content)
    x = np.ones((1, 64), dtype=np.float32)
    (got,) = onnxruntime.InferenceSession(tmp_path / "plain.onnx").run(None, {"x": x})
    with torch.inference_mode():
        assert not np.allclose(got, variants["plain"](torch.from_numpy(x)).numpy(), atol=1e-3)


def test_graphs_refer_to_one_place_of_one_file(folder):
    def places(name: str) -> dict[str, dict[str, str]]:
        model = onnx.load(folder / f"{name}.onnx", load_external_data=False)
        return {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer}

    plain, longer, copied = map(places, ("plain", "longer", "copied"))
    assert (
        plain["common.weight"]
        == longer["common.weight"]
        == {"location": "group.data", "offset": "0"} | {"length": str(BYTES)}
    )
    assert copied["own.weight"] == longer["own.weight"]


def test_tensorrt_rtx_builds_from_shared_weights(folder, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install 'saishiki[rtx]'")
    (target,) = parse_targets("rtx", ())
    profile = Profile({"batch": 1}, {"batch": 2}, {"batch": 4})
    sizes = {}
    for name in ("plain", "longer"):
        report = build_engine(
            folder / f"{name}.onnx",
            signature=SIGNATURE,
            profiles=(profile,),
            target=target,
            output=tmp_path / f"{name}.engine",
        )
        assert report.header is not None
        sizes[name] = report.header.weight_bytes
    # Each engine holds the weights of its own graph, and no more.
    assert BYTES <= sizes["plain"] < 2 * BYTES <= sizes["longer"]
