import hashlib
import json
import os
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from saishiki.export import export_bundle, parse_profiles
from saishiki.export import graphs as graphs_module
from saishiki.models import CheckpointError
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BundleError
from tests.export.conftest import request_for, save_network, smallest_network, start_export


def test_export_bundle_writes_what_the_manifest_says(smallest_export, smallest_checkpoint):
    manifest = Bundle.open(smallest_export.bundle).manifest
    assert manifest == replace(smallest_export.manifest, config=smallest_export.manifest.config | {"channel_mult": [1]})
    assert (manifest.family, manifest.variant, manifest.prediction) == ("animediffusion", "custom", "eps")
    assert manifest.checkpoint.sha256 == hashlib.sha256(smallest_checkpoint.read_bytes()).hexdigest()
    assert {name: sorted(module.graphs) for name, module in manifest.modules.items()} == {
        "time_projection": ["fp32"],
        "denoiser": ["fp16", "fp32"],
    }
    assert manifest.precision.fp32_modules == ("time_projection",)
    assert manifest.precision.largest_activation_in.startswith("denoiser.unet.")
    for entry in manifest.files():
        assert hashlib.sha256((smallest_export.bundle / entry.path).read_bytes()).hexdigest() == entry.sha256


def test_manifest_holds_only_numbers_that_json_has(smallest_export):
    def refuse(name):
        raise AssertionError(f"{name} in the manifest")

    text = (smallest_export.bundle / "manifest.json").read_text()
    manifest = json.loads(text, parse_constant=refuse)
    assert "null" not in json.dumps(manifest["certificate"])
    assert manifest["certificate"]["verdict"] == "passed"


class Recorder:
    def __init__(self):
        self.stages, self.notes, self.parts = [], [], []

    def stage(self, stage):
        self.stages.append(stage)

    def part(self, name, done, total):
        self.parts.append((self.stages[-1], name, done, total))

    def note(self, text):
        self.notes.append(text)


def test_export_bundle_tells_its_stages_and_notices(smallest_checkpoint, reused_graphs, tmp_path):
    from safetensors.torch import load_file, save_file

    from saishiki.export.progress import CERTIFY, GRAPHS, REFERENCE, SCAN, STAGES

    path, recorder = tmp_path / "silent.safetensors", Recorder()
    save_file(load_file(smallest_checkpoint), path)
    export_bundle(request_for(path, tmp_path / "new"), recorder)
    assert tuple(recorder.stages) == STAGES
    graphs = [part for part in recorder.parts if part[0] == GRAPHS]
    assert graphs == [(GRAPHS, "time_projection", 0, 2), (GRAPHS, "denoiser", 1, 2)]
    assert {part[0] for part in recorder.parts} == {SCAN, GRAPHS, REFERENCE, CERTIFY}
    assert all(done <= total for _, _, done, total in recorder.parts)
    assert recorder.notes[0] == "silent.safetensors: animediffusion (custom)"
    assert "assuming the published 4 (say otherwise with --attention-heads)" in recorder.notes[1]


def test_export_bundle_keeps_islands_in_fp32(tmp_path):
    """A convolution that gives about 1e6 within a block: naive fp16 would overflow, the certificate still passes."""
    network = smallest_network()
    with torch.no_grad():
        network.denoise_fn.encoder_block[0].conv1[2].weight.mul_(1e6)
    checkpoint = save_network(network, tmp_path / "large.safetensors")
    manifest = export_bundle(request_for(checkpoint, tmp_path / "new")).manifest
    assert manifest.precision.largest_activation > 1e5
    assert manifest.precision.largest_activation_in.startswith("denoiser.unet.encoder_block.0.conv1")
    assert manifest.precision.fp32_modules == ("time_projection", "denoiser.unet.encoder_block.0")
    assert manifest.certificate.verdict == "passed"
    half = [row for row in manifest.certificate.rows if row.precision == "fp16"]
    assert half
    assert all(0 < row.reference_fp16 < 0.01 for row in half)


def test_export_bundle_of_a_network_that_gives_infinity(tmp_path):
    network = smallest_network()
    with torch.no_grad():
        network.denoise_fn.output[2].weight.fill_(3e38)
    checkpoint = save_network(network, tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match=r"gives NaN or infinite values in fp32.* take an earlier one"):
        export_bundle(request_for(checkpoint, tmp_path / "new"))
    assert os.listdir(tmp_path) == ["broken.safetensors"]


@pytest.mark.parametrize("why", ["checkpoint", "graph"])
def test_a_failing_export_does_not_lose_the_old_bundle(
    smallest_checkpoint, smallest_bundle, tmp_path, monkeypatch, why
):
    before = (smallest_bundle / "manifest.json").read_bytes()
    checkpoint = smallest_checkpoint
    if why == "checkpoint":
        checkpoint = tmp_path / "damaged.safetensors"
        checkpoint.write_bytes(smallest_checkpoint.read_bytes()[:-1])
    else:

        def fail(*_):
            raise ValueError("no graph")

        monkeypatch.setattr(graphs_module, "write_graph", fail)
    with pytest.raises(ValueError, match=r"no graph|not a readable safetensors file"):
        export_bundle(request_for(checkpoint, smallest_bundle, overwrite=True))
    assert (smallest_bundle / "manifest.json").read_bytes() == before
    Bundle.open(smallest_bundle).schedule()
    assert [name for name in os.listdir(tmp_path) if name.endswith(".partial")] == []


def test_export_bundle_overwrites(smallest_checkpoint, smallest_bundle, reused_graphs):
    with pytest.raises(FileExistsError, match="replace it with --overwrite"):
        export_bundle(request_for(smallest_checkpoint, smallest_bundle))
    export_bundle(request_for(smallest_checkpoint, smallest_bundle, overwrite=True, command="the second"))
    assert Bundle.open(smallest_bundle).manifest.export_command == "the second"


def test_export_bundle_size_not_a_multiple(tiny_checkpoint, tmp_path):
    request = request_for(tiny_checkpoint, tmp_path / "new", profiles=parse_profiles(["32:33:34"], "1"))
    with pytest.raises(ValueError, match="height must be a positive multiple of 2, got 33"):
        export_bundle(request)
    assert os.listdir(tmp_path) == []


def test_export_bundle_unknown_family(tmp_path):
    from safetensors.torch import save_file

    save_file({"betas": torch.ones(3)}, tmp_path / "animediffusion.safetensors")
    with pytest.raises(CheckpointError, match="its tensors are those of no family"):
        export_bundle(request_for(tmp_path / "animediffusion.safetensors", tmp_path / "new"))


def test_exports_of_a_pickle_and_of_safetensors_are_the_same(
    smallest_export, smallest_checkpoint, reused_graphs, tmp_path
):
    from safetensors.torch import load_file

    torch.save(
        {"state_dict": {f"model.{k}": v for k, v in load_file(smallest_checkpoint).items()}}, tmp_path / "a.ckpt"
    )
    result = export_bundle(request_for(tmp_path / "a.ckpt", tmp_path / "new"))
    want, got = (Bundle.open(path).parity_vectors() for path in (smallest_export.bundle, result.bundle))
    assert want.keys() == got.keys()
    for key in want:
        np.testing.assert_allclose(got[key], want[key], atol=2e-5, err_msg=key)


MOMENTS = ["", "onnx/time_projection.fp32.onnx", "onnx/denoiser.fp32.onnx.data", "parity.safetensors"]


def killed_when(moment, checkpoint, folder):
    """Starts a real export and kills it as soon as a file appears in its draft; whether it was still running then."""
    folder.mkdir()
    process = start_export(checkpoint, "-o", "new", "--targets", "onnx", "--size", "8", cwd=folder)
    try:
        while process.poll() is None and not [d for d in folder.glob(".new.*.partial") if (d / moment).exists()]:
            time.sleep(0.005)
        running = process.poll() is None
    finally:
        process.kill()
        process.communicate()
    return running


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_export_leaves_nothing_that_loads(moment, smallest_checkpoint, reused_graphs, tmp_path):
    folder = tmp_path / "out"
    assert killed_when(moment, smallest_checkpoint, folder)
    (left,) = folder.iterdir()
    for path in (left, folder / "new"):
        with pytest.raises(BundleError):
            Bundle.open(path, allow_failed=True)
    export_bundle(request_for(smallest_checkpoint, folder / "new"))
    assert Bundle.open(folder / "new").manifest.certificate.verdict == "passed"
    assert os.listdir(folder) == ["new"]


def test_killed_overwriting_export_leaves_the_old_bundle(smallest_checkpoint, smallest_bundle, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    shutil.move(smallest_bundle, folder / "new")
    process = start_export(
        smallest_checkpoint, "-o", "new", "--targets", "onnx", "--size", "8", "--overwrite", cwd=folder
    )
    while process.poll() is None and not list(folder.glob(".new.*.partial")):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert len(list(folder.iterdir())) == 2
    Bundle.open(folder / "new").parity_vectors()


def test_a_service_under_another_user_can_read_the_bundle(smallest_export):
    modes = {path.stat().st_mode & 0o777 for path in smallest_export.bundle.rglob("*") if path.is_file()}
    umask = os.umask(0)
    os.umask(umask)
    assert modes == {0o644 & ~umask}
