"""The certificate's negative controls: each of them must turn it red, in an export as a user runs it."""

import copy
import math
import os
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx.external_data_helper import load_external_data_for_model
from torch import nn

from saishiki.export import CertificateFailed, export_bundle
from saishiki.export.certificate import record_reference
from saishiki.export.certificate import sizes as sizes_module
from saishiki.export.certificate.budgets import FP16_FLOOR, budget_of, least_psnr
from saishiki.export.certificate.modules import outputs_of, rounded_error
from saishiki.models import LoadOptions, read_checkpoint, recognize
from saishiki.models.animediffusion import Denoiser
from saishiki.runtime import schedule
from saishiki.runtime.backends.onnxruntime import OnnxRuntimeBackend
from saishiki.runtime.bundle import Bundle, file_entry
from saishiki.runtime.errors import BundleError
from saishiki.runtime.parity import measure
from tests.export.conftest import request_for

FP32_BUDGET = 2e-5
LEAST_PSNR_DB = {"fp32": 80.0, "fp16": 45.0}
BOTH = ("denoiser.fp32.onnx", "denoiser.fp16.onnx")


def failed_rows(manifest):
    certificate = manifest.certificate
    assert certificate.verdict == "failed"
    return {(row.module, row.precision) for row in certificate.rows if not row.passed}


def failed_images(manifest):
    return {image.precision for image in manifest.certificate.images if not image.passed}


def export_failing(checkpoint, tmp_path, **changes):
    with pytest.raises(CertificateFailed) as failure:
        export_bundle(request_for(checkpoint, tmp_path / "new", **changes))
    return failure.value


def test_a_correct_export_passes(smallest_export):
    certificate = smallest_export.manifest.certificate
    assert certificate.verdict == "passed"
    assert {(row.module, row.precision) for row in certificate.rows} == {
        ("time_projection", "fp32"),
        ("denoiser", "fp32"),
        ("denoiser", "fp16"),
    }
    assert [len(image.step_errors) for image in certificate.images] == [10, 10]
    fp32, fp16 = (
        max(row.error for row in certificate.rows if row.precision == precision) for precision in ("fp32", "fp16")
    )
    # The budgets are not slack: real errors are within a factor of 30 in fp32, and of 10 in fp16.
    assert FP32_BUDGET / 30 < fp32 < FP32_BUDGET
    budget = max(row.budget for row in certificate.rows if row.precision == "fp16")
    assert budget / 10 < fp16 < budget


def scaled(name, factor):
    def change(module):
        changed = copy.deepcopy(module)
        changed.get_parameter(name).data.mul_(factor)
        return changed

    return change


def test_perturbed_weight(smallest_checkpoint, reused_graphs, tmp_path):
    """One convolution scaled by 1.001 in the fp32 graph; the fp16 graph is as it should be."""
    reused_graphs({BOTH[0]: scaled("unet.encoder_block.0.conv2.3.weight", 1.001)})
    failure = export_failing(smallest_checkpoint, tmp_path)
    assert failed_rows(failure.manifest) == {("denoiser", "fp32")}
    assert failed_images(failure.manifest) == {"fp32"}
    assert "not equivalent to the checkpoint, no bundle was written (--keep-failed writes one)" in str(failure)
    assert os.listdir(tmp_path) == []


class SwappedChannels(Denoiser):
    """Puts the condition before the noisy picture."""

    def forward(self, noisy, condition, time):
        dtype = self.unet.output[2].weight.dtype
        return self.unet.denoise(torch.cat([condition, noisy], dim=1).to(dtype), time.to(dtype)).to(torch.float32)


def test_swapped_channels(smallest_checkpoint, reused_graphs, tmp_path):
    reused_graphs({BOTH[0]: lambda module: SwappedChannels(module.unet)})
    failure = export_failing(smallest_checkpoint, tmp_path, keep_failed=True)
    assert failed_rows(failure.manifest) == {("denoiser", "fp32")}
    assert failed_images(failure.manifest) == {"fp32"}
    assert f"kept as {tmp_path / 'new'}, marked as failed" in str(failure)
    with pytest.raises(BundleError, match="its parity certificate failed, so its engines do not compute what the chec"):
        Bundle.open(tmp_path / "new")
    kept = Bundle.open(tmp_path / "new", allow_failed=True).manifest
    assert kept.certificate.verdict == "failed"
    assert {row.passed for row in kept.certificate.rows} == {True, False}


def test_swapped_channels_in_the_module_itself(smallest_checkpoint, reused_graphs, tmp_path, monkeypatch):
    """Reference rows and graph agree on the mistake; the run of the whole published network does not."""
    monkeypatch.setattr(Denoiser, "forward", SwappedChannels.forward)
    reused_graphs({BOTH[0]: lambda module: module})
    failure = export_failing(smallest_checkpoint, tmp_path)
    assert ("denoiser", "fp32") not in failed_rows(failure.manifest)
    assert "fp32" in failed_images(failure.manifest)


def test_shifted_timesteps(smallest_checkpoint, reused_graphs, tmp_path, monkeypatch):
    """The runtime's timesteps one too low: every module is right, and the run is not."""
    original = schedule.ddim_timesteps
    monkeypatch.setattr(schedule, "ddim_timesteps", lambda *sizes: tuple(t - (t > 1) for t in original(*sizes)))
    failure = export_failing(smallest_checkpoint, tmp_path)
    assert failed_rows(failure.manifest) == set()
    assert failed_images(failure.manifest) == {"fp32", "fp16"}


def weights_of(graph):
    model = onnx.load(graph, load_external_data=False)
    load_external_data_for_model(model, str(graph.parent))
    return model


def remeasured(bundle, graph, name, factor):
    """The certificate of a copied bundle in which one weight of a graph was scaled."""
    path = bundle / "onnx" / graph
    manifest = Bundle.open(bundle, allow_failed=True).manifest
    model = weights_of(path)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    values = onnx.numpy_helper.to_array(tensor) * np.array(factor, onnx.numpy_helper.to_array(tensor).dtype)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, path)
    module, precision, _ = graph.split(".")
    entry = manifest.modules[module]
    changed = replace(entry.graphs[precision], graph=file_entry(bundle, f"onnx/{graph}"), weights=None)
    modules = {**manifest.modules, module: replace(entry, graphs={**entry.graphs, precision: changed})}
    backend = OnnxRuntimeBackend(device=None, threads=1)
    return measure(
        Bundle(bundle, replace(manifest, modules=modules)),
        backend,
        precisions=(precision,),
        only_profiles=False,
        versions={},
    )


@pytest.mark.parametrize(("graph", "factor"), [(BOTH[0], 1.001), (BOTH[1], 1.1)])
def test_every_scaled_weight_is_caught(smallest_export, tmp_path, graph, factor):
    """Every convolution's weight: by 0.1 % in the fp32 graph; by 10 % in fp16, for a norm takes most of it back."""
    model = weights_of(smallest_export.bundle / "onnx" / graph)
    names = [
        tensor.name for tensor in model.graph.initializer if tensor.name.endswith("weight") and len(tensor.dims) > 1
    ]
    assert len(names) == 12
    missed = []
    for i, name in enumerate(names):
        bundle = shutil.copytree(smallest_export.bundle, tmp_path / str(i))
        if remeasured(bundle, graph, name, factor).verdict == "passed":
            missed.append(name)
    assert missed == []


def test_an_unchanged_graph_passes_when_measured_again(smallest_export, smallest_bundle):
    name = weights_of(smallest_bundle / "onnx" / BOTH[0]).graph.initializer[0].name
    assert remeasured(smallest_bundle, BOTH[0], name, 1.0).verdict == "passed"


@pytest.mark.parametrize(
    ("precision", "rounded", "expected"),
    [
        ("fp32", 1e-3, FP32_BUDGET),
        ("fp32", math.nan, FP32_BUDGET),
        ("fp16", 1e-3, 2.1e-3),
        ("fp16", 0.0, FP16_FLOOR),
        ("fp16", math.nan, FP16_FLOOR),
        ("fp16", math.inf, FP16_FLOOR),
    ],
)
def test_budget(precision, rounded, expected):
    assert budget_of(precision, rounded, fp32=FP32_BUDGET) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("precision", "rounded", "expected"),
    [
        ("fp32", 70.0, LEAST_PSNR_DB["fp32"]),
        ("fp16", 70.0, 64.0),
        ("fp16", 30.0, LEAST_PSNR_DB["fp16"]),
        ("fp16", 200.0, LEAST_PSNR_DB["fp32"]),
        ("fp16", math.nan, LEAST_PSNR_DB["fp16"]),
    ],
)
def test_least_psnr(precision, rounded, expected):
    assert least_psnr(precision, rounded, LEAST_PSNR_DB) == pytest.approx(expected)


@pytest.fixture(scope="module")
def source(smallest_checkpoint):
    checkpoint = read_checkpoint(smallest_checkpoint)
    family = recognize(checkpoint)
    return family.load(checkpoint, LoadOptions()), family


def recorded(source, size, batch="1", *, thorough=False, kept=("time_projection",)):
    from saishiki.export import parse_profiles

    asked = ("fp32", "fp16")
    return record_reference(*source, parse_profiles([size], batch), kept, asked=asked, thorough=thorough)


def test_record_reference_probes_every_corner(source):
    expected = recorded(source, "8x8:16x8:16x24", "1:2:3")
    sizes = [(r.module, r.precision, *r.sizes.values()) for r in expected.rows]
    corners = [(1, 8, 8), (2, 16, 8), (3, 16, 24)]
    assert set(sizes) == {
        *(("time_projection", "fp32", steps) for steps in (1, 10, 999)),
        *(("denoiser", precision, *corner) for precision in ("fp32", "fp16") for corner in corners),
    }
    assert expected.vectors["denoiser/3x16x24/out/eps"].shape == (3, 3, 16, 24)
    assert {row.passed for row in expected.rows} == {False}


def test_record_reference_of_large_pictures_runs_short_and_reduced(source, monkeypatch):
    monkeypatch.setattr(sizes_module, "FULL_RUN_PX", 16 * 16)
    monkeypatch.setattr(sizes_module, "REDUCED_PX", 8 * 8)

    def runs(size, **options):
        images = recorded(source, size, **options).images
        return {(image.precision, *image.sizes.values(), len(image.step_budgets)) for image in images}

    assert runs("16") == {("fp32", 1, 16, 16, 10), ("fp16", 1, 16, 16, 10)}
    assert runs("16x32") == {("fp32", 1, 6, 11, 10), ("fp16", 1, 6, 11, 10), ("fp16", 1, 16, 32, 2)}
    assert runs("16x32", thorough=True) == {("fp32", 1, 16, 32, 10), ("fp16", 1, 16, 32, 10)}


def test_rounding_of_large_pictures_is_measured_on_small_ones(source, monkeypatch):
    monkeypatch.setattr(sizes_module, "FULL_RUN_PX", 16 * 16)
    monkeypatch.setattr(sizes_module, "REDUCED_PX", 8 * 8)

    def error(size, **options):
        (row,) = (r for r in recorded(source, size, **options).rows if (r.module, r.precision) == ("denoiser", "fp16"))
        return row.reference_fp16

    assert error("16x32") == error("6x11") != error("16x32", thorough=True)
    assert error("16x32") == pytest.approx(error("16x32", thorough=True), rel=0.3)


def test_record_reference_of_a_module_kept_in_fp32(source):
    expected = recorded(source, "8", kept=("time_projection", "denoiser"))
    assert {(row.module, row.precision) for row in expected.rows} == {("time_projection", "fp32"), ("denoiser", "fp32")}


def test_record_reference_is_deterministic(source):
    first, second = recorded(source, "8"), recorded(source, "8")
    assert first.rows == second.rows
    assert all((first.vectors[key] == second.vectors[key]).all() for key in first.vectors)


class TwoOutputs(nn.Module):
    """The input scaled, and a second output that fp16 rounds by another amount."""

    def __init__(self, second: float) -> None:
        super().__init__()
        self.second = second

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 2 * x, self.second * x


def test_outputs_of_one_and_of_several():
    x = torch.arange(3.0)
    first, second = outputs_of(TwoOutputs(5.0), {"x": x})
    assert (first.tolist(), second.tolist()) == ([0, 2, 4], [0, 5, 10])
    (only,) = outputs_of(nn.ReLU(), {"input": x})
    assert only.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("second", "largest"), [(2.0, 0.0), (1 + 2**-12, 2**-12), (1e6, math.nan)])
def test_rounded_error_is_the_largest_of_all_outputs(second, largest):
    inputs = {"x": torch.ones(4)}
    module = TwoOutputs(second)
    error = rounded_error(module, (), inputs, outputs_of(module, inputs))
    assert error == pytest.approx(largest, rel=1e-3, nan_ok=True)


def test_a_recorded_run_is_stored_with_its_inputs_settings_and_image(source):
    (row,) = {image.vectors: image for image in recorded(source, "8").images}.values()
    assert row.settings == {"steps": 10, "eta": 1.0, "start": "noise"}
    vectors = recorded(source, "8").vectors
    names = {key.removeprefix(row.vectors + "/") for key in vectors if key.startswith(row.vectors)}
    assert names == {"states", "image", *(f"inputs/{name}" for name in ("sketch", "reference", "start", "noise"))}
    assert (vectors[f"{row.vectors}/image"] == vectors[f"{row.vectors}/states"][-1]).all()
