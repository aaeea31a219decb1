import shutil
import sys
from pathlib import Path

import pytest

from saishiki.export import export_bundle, pipeline
from saishiki.export.apart import manifest_from_checkpoint_apart
from saishiki.export.bundle_writer import BundleDraft
from saishiki.export.progress import GRAPHS, REFERENCE, SCAN
from saishiki.models import CheckpointError
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import SaishikiError
from tests.export.conftest import request_for
from tests.export.test_pipeline import Recorder

# Answers as the real child does, with something else in PyTorch's place.
CHILD = """
import os, signal
from saishiki.export import apart
from saishiki.models import CheckpointError

def described(request, draft, observer):
    {}

apart._described = described
apart.main()
"""


def child_that(statement):
    return (sys.executable, "-c", CHILD.format(statement))


def apart(tmp_path, recorder, statement):
    request = request_for(Path("none.safetensors"), tmp_path / "new")
    return manifest_from_checkpoint_apart(request, BundleDraft(tmp_path), recorder, child=child_that(statement))


@pytest.mark.slow
def test_manifest_from_checkpoint_apart_is_that_of_this_process(smallest_export, smallest_checkpoint, tmp_path):
    """Its graphs and vectors are, too: the same bytes."""
    recorder = Recorder()
    request = request_for(smallest_checkpoint, smallest_export.bundle)
    manifest = manifest_from_checkpoint_apart(request, BundleDraft(tmp_path), recorder)
    assert recorder.stages == [SCAN, GRAPHS, REFERENCE]
    assert (GRAPHS, "denoiser", 1, 2) in recorder.parts
    assert recorder.notes == ["smallest.safetensors: animediffusion (custom)"]
    want = Bundle.open(smallest_export.bundle).manifest
    assert (manifest.certificate.verdict, {m.engines for m in manifest.modules.values()}) == ("failed", {()})
    assert list(manifest.files()) == list(want.files())
    assert [row.vectors for row in manifest.certificate.rows] == [row.vectors for row in want.certificate.rows]
    for entry in want.files():
        assert (tmp_path / entry.path).read_bytes() == (smallest_export.bundle / entry.path).read_bytes(), entry.path


def test_manifest_from_checkpoint_apart_raises_what_the_child_raises(tmp_path):
    recorder, fails = Recorder(), "raise CheckpointError('half of it is missing')"
    with pytest.raises(CheckpointError, match="half of it is missing") as caught:
        apart(tmp_path, recorder, f"print('a library'); observer.note('hm'); {fails}")
    assert str(caught.value) == "half of it is missing"
    assert recorder.notes == ["hm"]
    (note,) = caught.value.__notes__
    assert note.startswith("in the process that runs PyTorch:\nTraceback")


def test_manifest_from_checkpoint_apart_says_how_the_child_died(tmp_path):
    with pytest.raises(SaishikiError, match=r"runs PyTorch was killed by SIGKILL \(most often .* out of memory\)"):
        apart(tmp_path, Recorder(), "os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(SaishikiError, match="ended with status 7; its messages are above"):
        apart(tmp_path, Recorder(), "os._exit(7)")


@pytest.mark.parametrize("bytes_over", [1, 0], ids=["large", "small"])
def test_export_bundle_runs_pytorch_apart_for_large_checkpoints(
    smallest_checkpoint, smallest_export, tmp_path, monkeypatch, bytes_over
):
    """The process of a large one fails here, and leaves nothing behind."""
    checkpoint = Path(shutil.copy(smallest_checkpoint, tmp_path / "a.safetensors"))
    limit = checkpoint.stat().st_size - bytes_over
    monkeypatch.setattr(pipeline, "APART_ABOVE_BYTES", limit)

    def described(where):
        def raises(*_):
            raise SaishikiError(where)

        return raises

    monkeypatch.setattr(pipeline, "manifest_from_checkpoint_apart", described("apart"))
    monkeypatch.setattr(pipeline, "manifest_from_checkpoint", described("here"))
    with pytest.raises(SaishikiError, match="apart" if bytes_over else "here"):
        export_bundle(request_for(checkpoint, tmp_path / "new"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
