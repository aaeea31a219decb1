"""A second export with nothing changed: what is reused, what makes it run again, and what it never touches."""

import os
import shutil
from dataclasses import replace

import pytest

from saishiki.export import export_bundle, parse_profiles, reuse
from saishiki.export.bundle_writer import MARKER
from saishiki.export.reuse import digest_of_export
from saishiki.models import LoadOptions
from saishiki.runtime.bundle import Bundle
from tests.export.conftest import request_for
from tests.export.test_pipeline import Recorder


@pytest.fixture
def request_again(smallest_checkpoint, smallest_export, tmp_path, monkeypatch):
    """The request of the bundle in ``tmp_path``, and a cache that does not know of it."""
    monkeypatch.setenv("SAISHIKI_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "first.saishiki"
    shutil.copytree(smallest_export.bundle, output)
    request = request_for(smallest_checkpoint, output, rebuild=False, overwrite=True)
    # What the export wrote, unless somebody has edited the code since this session of tests began.
    (output / MARKER).write_text(digest_of_export(request))
    return request


@pytest.fixture
def never_loaded(monkeypatch):
    """An export that gets as far as loading the checkpoint fails."""

    def refuse(*_):
        raise AssertionError("exported again")

    monkeypatch.setattr("saishiki.export.pipeline.manifest_from_checkpoint", refuse)


def content(bundle):
    return {str(p.relative_to(bundle)): p.read_bytes() for p in bundle.rglob("*") if p.is_file()}


def test_export_marks_its_bundle_with_the_digest_of_its_request(smallest_checkpoint, tmp_path, reused_graphs):
    request = request_for(smallest_checkpoint, tmp_path / "new")
    digest = digest_of_export(request)
    assert (export_bundle(request).bundle / MARKER).read_text() == digest


def test_export_again_reuses_the_bundle_at_the_output(request_again, never_loaded):
    before, recorder = content(request_again.output), Recorder()
    result = export_bundle(replace(request_again, command="export-engines again"), recorder)
    after = content(request_again.output)
    assert {name for name in after if after[name] != before[name]} == {"manifest.json"}
    assert after.keys() == before.keys()
    assert Bundle.open(result.bundle).manifest.export_command == "export-engines again"
    assert recorder.notes == [
        f"nothing has changed since {request_again.output} was made: its files are reused, checked by their hashes"
    ]
    assert sorted(path.name for path in request_again.output.parent.iterdir()) == ["cache", "first.saishiki"]


def test_export_elsewhere_copies_what_the_cache_knows_of(request_again, never_loaded, tmp_path):
    export_bundle(request_again)
    second = tmp_path / "second.saishiki"
    export_bundle(replace(request_again, output=second))
    first = request_again.output
    assert {name: c for name, c in content(second).items() if name != "manifest.json"} == {
        name: c for name, c in content(first).items() if name != "manifest.json"
    }
    # Copies: nothing that happens to one reaches the other.
    assert all(p.stat().st_nlink == 1 for p in second.rglob("*") if p.is_file())


def test_export_still_needs_overwrite(request_again, never_loaded):
    with pytest.raises(FileExistsError, match="holds a bundle; replace it with --overwrite"):
        export_bundle(replace(request_again, overwrite=False))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("onnx/denoiser.fp32.onnx.data", lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x07")),
        ("parity.safetensors", lambda path: path.unlink()),
        ("manifest.json", lambda path: path.write_bytes(path.read_bytes().replace(b'"fp16"', b'"fp32"', 1))),
        (MARKER, lambda path: path.write_text("0" * 64)),
    ],
)
def test_a_damaged_bundle_is_made_anew(request_again, never_loaded, name, damage):
    damage(request_again.output / name)
    with pytest.raises(AssertionError, match="exported again"):
        export_bundle(request_again)


def test_a_damaged_file_is_named(request_again, never_loaded):
    data = request_again.output / "onnx/denoiser.fp32.onnx.data"
    data.write_bytes(b"\x07" + data.read_bytes()[1:])
    recorder = Recorder()
    with pytest.raises(AssertionError, match="exported again"):
        export_bundle(request_again, recorder)
    assert len(recorder.notes) == 1
    assert "denoiser.fp32.onnx.data is damaged" in recorder.notes[0]
    assert recorder.notes[0].endswith("exporting again")


def test_a_damaged_copy_elsewhere_is_made_anew(request_again, never_loaded, tmp_path):
    export_bundle(request_again)
    (request_again.output / "schedule.safetensors").write_bytes(b"")
    with pytest.raises(AssertionError, match="exported again"):
        export_bundle(replace(request_again, output=tmp_path / "second.saishiki"))


def test_rebuild_reuses_nothing(request_again, never_loaded):
    with pytest.raises(AssertionError, match="exported again"):
        export_bundle(replace(request_again, rebuild=True))


def test_digest_of_export_is_that_of_what_a_bundle_follows_from(smallest_checkpoint, tmp_path):
    request = request_for(smallest_checkpoint, tmp_path / "a")
    digest = digest_of_export(request)
    elsewhere = tmp_path / "folder"
    elsewhere.mkdir()
    moved = shutil.copyfile(smallest_checkpoint, elsewhere / smallest_checkpoint.name)
    same = {"output": tmp_path / "b", "overwrite": True, "rebuild": False, "command": "other", "checkpoint": moved}
    for name, value in same.items():
        assert digest_of_export(replace(request, **{name: value})) == digest, name
    longer = moved.with_name("renamed.safetensors")
    shutil.copyfile(moved, longer)
    changed = {
        "profiles": parse_profiles(["16"], "1"),
        "precisions": ("fp16",),
        "thorough": True,
        "load": LoadOptions(attention_head=2),
        "checkpoint": longer,
    }
    for name, value in changed.items():
        assert digest_of_export(replace(request, **{name: value})) != digest, name
    os.truncate(moved, moved.stat().st_size - 1)
    assert digest_of_export(replace(request, checkpoint=moved)) != digest


def test_digest_of_export_changes_with_versions_and_code(smallest_checkpoint, tmp_path, monkeypatch):
    request = request_for(smallest_checkpoint, tmp_path / "a")
    digest = digest_of_export(request)
    with monkeypatch.context() as patch:
        patch.setattr(reuse, "version", lambda package: "0.0")
        assert digest_of_export(request) != digest
    with monkeypatch.context() as patch:
        patch.setattr(reuse, "CODE", ("export", "models"))
        assert digest_of_export(request) != digest
    assert digest_of_export(request) == digest
