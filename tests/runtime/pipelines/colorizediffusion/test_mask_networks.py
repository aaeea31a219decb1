"""Mask networks that a user supplies."""

import os

import numpy as np
import pytest

from saishiki.runtime.errors import BackendError
from saishiki.runtime.pipelines.colorizediffusion.mask_networks import MAX_NETWORKS, MaskNetworks, network_key
from saishiki.runtime.pipelines.colorizediffusion.segmentation import (
    reference_mask,
    reference_network_pixels,
    sketch_mask,
    sketch_network_pixels,
)
from tests.pictures import draw_sketch, paint_reference
from tests.runtime.pipelines.colorizediffusion.test_pipeline import colorizer_of

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'saishiki[export]'")
pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install 'saishiki[cpu]'")

SKETCH, REFERENCE, BACKGROUND = draw_sketch(60, 100), paint_reference(52, 38), paint_reference(40, 70, seed=3)


def save_network(path, *, sigmoid=False, inputs=1):
    """A network whose plane is four times the picture's first channel."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    shape = [1, 3, 1024, 1024]
    constants = [
        helper.make_tensor("starts", onnx.TensorProto.INT64, [1], [0]),
        helper.make_tensor("ends", onnx.TensorProto.INT64, [1], [1]),
        helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [1]),
        helper.make_tensor("four", kind, [], [4.0]),
    ]
    nodes = [
        helper.make_node("Slice", ["pixels", "starts", "ends", "axes"], ["red"]),
        helper.make_node("Mul", ["red", "four"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probability"]),
    ]
    given = [helper.make_tensor_value_info(name, kind, shape) for name in ("pixels", "more")[:inputs]]
    out = helper.make_tensor_value_info("probability" if sigmoid else "logits", kind, [1, 1, 1024, 1024])
    graph = helper.make_graph(nodes[: 3 if sigmoid else 2], "mask", given, [out], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture
def network(tmp_path):
    return save_network(tmp_path / "mask.onnx")


def test_of_sketch(network, tmp_path):
    sketch = np.random.default_rng(0).uniform(-1, 1, (1, 3, 64, 128)).astype(np.float32)
    want = sketch_mask(4 * sketch_network_pixels(sketch)[:, :1], height=64, width=128)
    networks = MaskNetworks()
    np.testing.assert_allclose(networks.of_sketch(network, sketch), want, atol=1e-6)
    ending = save_network(tmp_path / "sigmoid.onnx", sigmoid=True)
    np.testing.assert_allclose(networks.of_sketch(str(ending), sketch), want, atol=1e-6)


def test_of_picture(network):
    plane = 4 * reference_network_pixels(REFERENCE)[:, :1]
    for dilate in (True, False):
        want = reference_mask(plane, height=52, width=38, dilate=dilate)
        np.testing.assert_allclose(MaskNetworks().of_picture(network, REFERENCE, dilate=dilate), want, atol=1e-6)


def test_networks_are_loaded_once_and_known_by_their_file(network, tmp_path):
    networks = MaskNetworks()
    networks.of_picture(network, REFERENCE)
    (first,) = networks._sessions.values()
    networks.of_picture(network, REFERENCE)
    assert list(networks._sessions.values()) == [first]
    key = network_key(network)
    os.utime(network, ns=(1, 1))
    assert network_key(network) != key
    for name in "abc":
        networks.of_picture(save_network(tmp_path / f"{name}.onnx"), REFERENCE)
    assert len(networks._sessions) == MAX_NETWORKS


def test_files_that_are_no_mask_network(tmp_path):
    with pytest.raises(FileNotFoundError):
        MaskNetworks().of_picture(tmp_path / "none.onnx", REFERENCE)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no network")
    with pytest.raises(BackendError, match=r"broken\.onnx: ONNX Runtime .* cannot load it"):
        MaskNetworks().of_picture(broken, REFERENCE)
    two = save_network(tmp_path / "two.onnx", inputs=2)
    with pytest.raises(BackendError, match=r"expected a mask network with one input .*, it has pixels, more"):
        MaskNetworks().of_picture(two, REFERENCE)


def test_networks_stand_in_for_masks(network):
    colorizer, options = colorizer_of("v2"), {"steps": 2, "mode": "full"}
    found = {"sketch_mask_network": network, "reference_mask_network": network}
    by_network = np.asarray(colorizer(SKETCH, REFERENCE, **found, **options))
    prepared = colorizer.backend.last["sketch_encoder"]["sketch"]
    want = MaskNetworks().of_sketch(network, prepared)
    assert 0 < want.mean() < 1
    masked = colorizer.backend.calls["image_encoder"]
    colorizer(SKETCH, REFERENCE, **found, **options)
    assert colorizer.backend.calls["image_encoder"] == masked  # the same network: the same background
    given = {"reference_mask": MaskNetworks().of_picture(network, REFERENCE)}
    again = np.asarray(colorizer_of("v2")(SKETCH, REFERENCE, sketch_mask_network=network, **given, **options))
    np.testing.assert_array_equal(by_network, again)


def test_remove_foreground_and_background(network):
    colorizer = colorizer_of("v2")
    masks = {"sketch_mask_network": network, "reference_mask_network": network}
    options = {"mode": "background", "background": BACKGROUND, "steps": 2, **masks}
    colorizer(SKETCH, REFERENCE, **options)
    plain = colorizer.backend.last["vae_encoder"]["image"]
    image = np.asarray(colorizer(SKETCH, REFERENCE, remove_foreground=True, **options))
    changed = colorizer.backend.last["vae_encoder"]["image"]
    assert np.abs(changed - plain).max() > 0.1
    cleared = np.asarray(colorizer(SKETCH, REFERENCE, remove_foreground=True, remove_background=True, **options))
    mask = MaskNetworks().of_picture(network, image, dilate=False)
    np.testing.assert_array_equal(cleared, np.where((mask < 0.5)[..., None], np.uint8(255), image))
