import json
import math
from dataclasses import replace

import pytest

from saishiki.runtime.errors import BundleError
from saishiki.runtime.manifest import FileEntry, json_from_manifest, manifest_from_json


@pytest.fixture
def fields(bundle):
    return json.loads(json_from_manifest(bundle.manifest))


def read(fields):
    return manifest_from_json(json.dumps(fields).encode(), source="x/manifest.json")


def test_manifest_survives_json(bundle, fields):
    assert read(fields) == bundle.manifest
    assert json_from_manifest(read(fields)) == json_from_manifest(bundle.manifest)


def test_manifest_states_what_was_exported(bundle):
    manifest = bundle.manifest
    assert (manifest.family, manifest.variant, manifest.prediction) == ("animediffusion", "custom", "eps")
    assert manifest.config["attention_head"] == 4
    assert (manifest.sampler.name, manifest.sampler.steps, manifest.sampler.eta) == ("ddim", 10, 1.0)
    assert {name: set(module.graphs) for name, module in manifest.modules.items()} == {
        "time_projection": {"fp32"},
        "denoiser": {"fp32", "fp16"},
    }
    assert manifest.modules["time_projection"].closest("fp16") == "fp32"
    assert manifest.modules["denoiser"].closest("fp16") == "fp16"


def test_files_are_those_in_the_folder(bundle):
    found = {path.relative_to(bundle.path).as_posix() for path in bundle.path.rglob("*") if path.is_file()}
    assert {entry.path for entry in bundle.manifest.files()} == found - {"manifest.json", ".saishiki-bundle"}


def test_a_failed_certificate_with_nan_survives_json(bundle):
    certificate = bundle.manifest.certificate
    row, image = replace(certificate.rows[0], error=math.nan), replace(certificate.images[0], psnr_db=math.nan)
    failed = replace(bundle.manifest, certificate=replace(certificate, verdict="failed", rows=(row,), images=(image,)))
    read_again = manifest_from_json(json_from_manifest(failed), source="x").certificate
    assert math.isnan(read_again.rows[0].error)
    assert math.isnan(read_again.images[0].psnr_db)
    assert read_again.rows[0].budget == row.budget


def test_the_settings_of_a_run_keep_their_nulls(bundle):
    certificate = bundle.manifest.certificate
    image = replace(certificate.images[0], settings={"background": None, "steps": 3}, psnr_db=math.nan)
    changed = replace(bundle.manifest, certificate=replace(certificate, images=(image,)))
    (read_again,) = manifest_from_json(json_from_manifest(changed), source="x").certificate.images
    assert read_again.settings == {"background": None, "steps": 3}
    assert math.isnan(read_again.psnr_db)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not a valid manifest .*truncated"),
        (b"\x00\xff\x10garbage", "not a valid manifest"),
        (b'{"format_version": 2', "not a valid manifest .*truncated"),
        (b"[1, 2]", "not a valid manifest .*Expected `object`, got `array`"),
        (b"null", "not a valid manifest .*Expected `object`, got `null`"),
        (b'{"format_version": 2, "family": "\xff\xfe"}', "not a valid manifest"),
        (b"[" * 100_000, "not a valid manifest"),
        (b"{}", "bundle format None, expected 2; export the checkpoint again"),
        (b'{"format_version": 0}', "bundle format 0, expected 2; export the checkpoint again"),
        (b'{"format_version": 1}', "bundle format 1, expected 2; export the checkpoint again"),
        (b'{"format_version": "2"}', "bundle format '2', expected 2"),
        (b'{"format_version": 3}', "bundle format 3, but this Saishiki reads up to 2; .*pip install -U saishiki"),
        (b'{"format_version": 2}', "not a valid manifest .*missing required field `saishiki_version`"),
    ],
)
def test_manifest_from_garbage(text, message):
    with pytest.raises(BundleError, match=message) as caught:
        manifest_from_json(text, source="x/manifest.json")
    assert str(caught.value).startswith("x/manifest.json: ")


WRONG_FIELDS = {
    "missing": (lambda f: f.pop("parity"), "missing required field `parity`"),
    "wrong type": (lambda f: f.update(config=[1]), r"Expected `object`, got `array` - at `\$.config`"),
    "unknown prediction": (lambda f: f.update(prediction="x0"), r"Invalid enum value 'x0' - at `\$.prediction`"),
    "unknown precision": (
        lambda f: f["modules"]["denoiser"]["graphs"].update(fp8=f["modules"]["denoiser"]["graphs"]["fp16"]),
        "Invalid enum value 'fp8'",
    ),
    "no profiles": (lambda f: f.update(profiles=[]), r"length >= 1 - at `\$.profiles`"),
    "no modules": (lambda f: f.update(modules={}), r"length >= 1 - at `\$.modules`"),
    "no graphs": (lambda f: f["modules"]["denoiser"].update(graphs={}), r"length >= 1 - at `\$.modules\[...\].graphs`"),
    "falling profile": (lambda f: f["profiles"][0]["max"].update(batch=0), "a profile must ascend"),
    "malformed dim": (
        lambda f: f["modules"]["denoiser"]["signature"]["inputs"][0].update(dims=["batch", "height-8"]),
        "expected a dim such as 3, height or height/8, got 'height-8'",
    ),
}


@pytest.mark.parametrize(("edit", "message"), WRONG_FIELDS.values(), ids=WRONG_FIELDS)
def test_manifest_with_a_wrong_field(fields, edit, message):
    edit(fields)
    with pytest.raises(BundleError, match=message):
        read(fields)


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/etc/passwd", "onnx/../../x", "..", "", ".", "onnx\\..\\x", "a\0b"]
)
def test_file_entry_outside_the_bundle(fields, path):
    with pytest.raises(ValueError, match="is not inside the bundle"):
        FileEntry(path, "0" * 64, 1)
    fields["schedule"]["path"] = path
    with pytest.raises(BundleError, match="is not inside the bundle"):
        read(fields)


def test_manifest_notices_a_changed_value_that_is_still_valid(fields):
    fields["sampler"]["eta"] = 0.0
    with pytest.raises(BundleError, match=r"x/manifest.json: damaged \(its content is not what its digest says\)"):
        read(fields)


def test_manifest_without_a_digest_is_refused(fields):
    del fields["digest"]
    with pytest.raises(BundleError, match="damaged"):
        read(fields)
