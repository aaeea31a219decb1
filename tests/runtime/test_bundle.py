import hashlib
import os

import numpy as np
import pytest

from saishiki.runtime import Bundle, BundleError, Colorizer
from saishiki.runtime import bundle as bundle_module
from saishiki.runtime.backends.onnxruntime import OnnxRuntimeBackend
from saishiki.runtime.bundle import file_entry, sha256_of_file
from saishiki.runtime.schedule import BUFFERS
from tests.bundles import edit_manifest, flip_byte, rewrite_file
from tests.pictures import draw_sketch, paint_reference

GRAPH, WEIGHTS = "onnx/denoiser.fp32.onnx", "onnx/denoiser.fp32.onnx.data"
FILES = ["schedule.safetensors", "parity.safetensors", GRAPH, WEIGHTS, "engines/tensorrt-rtx-sm89/denoiser.engine"]


@pytest.fixture
def with_engine(bundle_copy):
    """A copy with a file in the place of an engine."""
    engine = bundle_copy / FILES[-1]
    engine.parent.mkdir(parents=True)
    engine.write_bytes(b"ftrt" + bytes(100))
    file = {"path": FILES[-1], "sha256": sha256_of_file(engine), "bytes": 104}
    key = dict.fromkeys(("weights", "graph", "profiles", "builder", "builder_version"), "0")
    entry = {"backend": "tensorrt-rtx", "target": "sm89", "key_hash": "0", "file": file, "build_seconds": 1.0}
    entry |= {"key": key | {"precision": "fp16", "target": "sm89"}, "layers": 1, "fused_attentions": 0}
    entry |= {"activation_bytes": 0}
    edit_manifest(bundle_copy, lambda fields: fields["modules"]["denoiser"].update(engines=[entry]))
    return bundle_copy


def entry_of(bundle, path):
    return next(entry for entry in bundle.manifest.files() if entry.path == path)


def test_open(tiny_bundle):
    bundle = Bundle.open(str(tiny_bundle))
    assert bundle.path == tiny_bundle
    assert bundle.module("denoiser").signature.symbols == ("batch", "height", "width")
    assert bundle.file(bundle.manifest.schedule) == tiny_bundle / "schedule.safetensors"


def test_open_with_an_engine(with_engine):
    engine = entry_of(Bundle.open(with_engine), FILES[-1])
    assert Bundle.open(with_engine).file(engine).read_bytes()[:4] == b"ftrt"


def test_schedule_and_parity_vectors(bundle):
    schedule = bundle.schedule()
    assert set(schedule.buffers) == set(BUFFERS)
    assert schedule.timesteps == 1000
    assert (schedule.gammas[0], schedule.gammas.dtype) == (np.float32(1 - 1e-6), np.float32)
    vectors = bundle.parity_vectors()
    assert vectors["run/1x32x32/10/states"].shape == (10, 1, 3, 32, 32)


def test_unknown_module(bundle):
    with pytest.raises(BundleError, match=r"no module 'vae'; it has \['denoiser', 'time_projection'\]"):
        bundle.module("vae")


@pytest.mark.parametrize("name", FILES)
def test_flipped_byte(with_engine, name):
    flip_byte(with_engine / name)
    bundle = Bundle.open(with_engine)  # the size is right, and no content is read yet
    with pytest.raises(
        BundleError, match=rf"{name} is damaged \(its sha256 is not the manifest's\); copy the file again"
    ):
        bundle.file(entry_of(bundle, name))
    unchecked = Bundle.open(with_engine, check_hashes=False)
    assert unchecked.file(entry_of(unchecked, name)) == with_engine / name


@pytest.mark.parametrize("name", FILES)
def test_truncated_file(with_engine, name):
    content = (with_engine / name).read_bytes()
    (with_engine / name).write_bytes(content[:-1])
    message = rf"{name} has {len(content) - 1} bytes, the manifest says {len(content)}"
    with pytest.raises(BundleError, match=message):
        Bundle.open(with_engine)


@pytest.mark.parametrize("name", FILES)
def test_missing_file(with_engine, name):
    (with_engine / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing; copy the whole folder, or export again"):
        Bundle.open(with_engine)


def test_flipped_byte_in_the_manifest(bundle_copy):
    path = bundle_copy / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"{", b"s", 1))
    with pytest.raises(BundleError, match=r"manifest.json: not a valid manifest \(.*\); export the checkpoint again"):
        Bundle.open(bundle_copy)


def test_a_file_is_read_once_to_check_it_and_again_after_a_change(bundle_copy, monkeypatch):
    bundle, read = Bundle.open(bundle_copy), []
    monkeypatch.setattr(bundle_module, "sha256_of_file", lambda path: read.append(path.name) or sha256_of_file(path))
    entry = bundle.manifest.schedule
    assert bundle.file(entry) == bundle.file(entry) == bundle_copy / entry.path
    assert read == ["schedule.safetensors"]
    flip_byte(bundle_copy / entry.path)
    os.utime(bundle_copy / entry.path, ns=(0, 0))  # the clock of files may stand still for some milliseconds
    for _ in range(2):
        with pytest.raises(BundleError, match=r"schedule.safetensors is damaged"):
            bundle.file(entry)
    assert len(read) == 3


def test_flipped_byte_in_a_hash(bundle_copy):
    def flip(fields):
        digits = fields["schedule"]["sha256"]
        fields["schedule"]["sha256"] = ("1" if digits[0] == "0" else "0") + digits[1:]

    edit_manifest(bundle_copy, flip)
    with pytest.raises(BundleError, match=r"schedule.safetensors is damaged"):
        Bundle.open(bundle_copy).schedule()


@pytest.mark.parametrize("name", ["schedule.safetensors", GRAPH, WEIGHTS])
def test_a_damaged_bundle_does_not_become_a_colorizer(bundle_copy, name):
    flip_byte(bundle_copy / name)
    with pytest.raises(BundleError, match=f"{name} is damaged"):
        Colorizer.load(bundle_copy, backend="onnxruntime")


def test_garbage_that_the_manifest_vouches_for(bundle_copy):
    rewrite_file(bundle_copy, "schedule.safetensors", lambda content: b"garbage")
    rewrite_file(bundle_copy, GRAPH, lambda content: b"garbage")
    bundle = Bundle.open(bundle_copy)
    with pytest.raises(BundleError, match=r"schedule.safetensors is not a safetensors file \(.*\); export again"):
        bundle.schedule()
    with pytest.raises(BundleError, match=r"denoiser.fp32.onnx: ONNX Runtime .* cannot load it"):
        OnnxRuntimeBackend(device=None).load(bundle, "denoiser", "fp32")


def test_schedule_without_a_table(bundle_copy):
    rewrite_file(bundle_copy, "schedule.safetensors", lambda content: content.replace(b'"gammas"', b'"gammaz"'))
    with pytest.raises(BundleError, match=r"schedule.safetensors lacks gammas; export again"):
        Bundle.open(bundle_copy).schedule()


def test_failed_certificate_is_refused(bundle_copy):
    edit_manifest(bundle_copy, lambda fields: fields["certificate"].update(verdict="failed"))
    with pytest.raises(BundleError, match=f"parity certificate failed.*see: saishiki inspect {bundle_copy}"):
        Bundle.open(bundle_copy)
    with pytest.raises(BundleError, match="parity certificate failed"):
        Colorizer.load(bundle_copy)
    assert Bundle.open(bundle_copy, allow_failed=True).manifest.certificate.verdict == "failed"


def test_unknown_family(bundle_copy):
    edit_manifest(bundle_copy, lambda fields: fields.update(family="sparkle-diffusion"))
    message = r"unknown family 'sparkle-diffusion', expected one of animediffusion, colorizediffusion-v1, .* upgrade"
    with pytest.raises(BundleError, match=message):
        Colorizer.load(bundle_copy, backend="onnxruntime")


@pytest.mark.parametrize("path", ["../../outside.safetensors", "/etc/passwd"])
def test_file_outside_the_folder_is_refused(bundle_copy, path):
    edit_manifest(bundle_copy, lambda fields: fields["schedule"].update(path=path))
    with pytest.raises(BundleError, match="is not inside the bundle"):
        Bundle.open(bundle_copy)


def test_no_folder(tmp_path):
    with pytest.raises(
        BundleError, match=r"nowhere: no such bundle; make one with: export-engines CHECKPOINT -o .*nowhere"
    ):
        Bundle.open(tmp_path / "nowhere")


def test_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "ckpt.safetensors").write_bytes(b"x")
    with pytest.raises(
        BundleError, match=r"ckpt.safetensors: is a file; expected the folder that export-engines wrote"
    ):
        Bundle.open(tmp_path / "ckpt.safetensors")


def test_interrupted_export(bundle_copy):
    (bundle_copy / "manifest.json").unlink()
    with pytest.raises(
        BundleError, match=r"holds no manifest.json, so it is not a bundle, or its export was interrupted"
    ):
        Bundle.open(bundle_copy)


def test_enormous_manifest(bundle_copy):
    with (bundle_copy / "manifest.json").open("ab") as file:
        file.truncate(16 * 1024 * 1024 + 1)
    with pytest.raises(BundleError, match="larger than 16777216 bytes, so it is not a manifest"):
        Bundle.open(bundle_copy)


def test_file_entry(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    entry = file_entry(tmp_path, "a")
    assert (entry.path, entry.bytes, entry.sha256) == ("a", 3, hashlib.sha256(b"abc").hexdigest())


def test_a_copied_bundle_colours_the_same(bundle_copy, colorizer):
    sketch, reference = draw_sketch(40, 40), paint_reference(40, 40)
    with Colorizer.load(Bundle.open(bundle_copy), backend="onnxruntime") as copied:
        got = copied(sketch, reference, steps=2)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(colorizer(sketch, reference, steps=2)))
