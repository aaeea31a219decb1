import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from saishiki.export import bundle_writer
from saishiki.export.bundle_writer import MARKER, check_output, commit_bundle, draft_bundle
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BundleError
from saishiki.runtime.manifest import MANIFEST_NAME

MANIFEST = MANIFEST_NAME


def write_bundle(source, output, *, overwrite=False, name="checkpoint"):
    """Writes a copy of a bundle the way an export does."""
    manifest = source.manifest
    with draft_bundle(output) as draft:
        for folder in ("onnx",):
            shutil.copytree(source.bundle / folder, draft.folder(folder), dirs_exist_ok=True)
        for file in source.bundle.glob("*.safetensors"):
            shutil.copyfile(file, draft.path / file.name)
        renamed = replace(manifest, checkpoint=replace(manifest.checkpoint, name=name))
        commit_bundle(draft, renamed, output, overwrite=overwrite)


def name_of(path):
    return Bundle.open(path).manifest.checkpoint.name


def loadable(parent):
    """The folders in ``parent`` that open as bundles; the others must say that they are none."""
    found = []
    for folder in sorted(parent.iterdir()):
        with suppress(BundleError):
            Bundle.open(folder)
            found.append(folder.name)
    return found


def test_write_and_open(smallest_export, tmp_path):
    write_bundle(smallest_export, tmp_path / "new")
    assert name_of(tmp_path / "new") == "checkpoint"
    assert os.listdir(tmp_path) == ["new"]
    assert sorted(os.listdir(tmp_path / "new")) == [
        MARKER,
        MANIFEST,
        "onnx",
        "parity.safetensors",
        "schedule.safetensors",
    ]
    assert oct((tmp_path / "new").stat().st_mode & 0o777) == oct(0o755)


def test_draft_is_no_bundle_and_is_removed_on_an_error(tmp_path):
    with suppress(RuntimeError), draft_bundle(tmp_path / "new") as draft:
        assert draft.path.parent == tmp_path
        assert draft.path.name.startswith(".new.")
        with pytest.raises(BundleError, match=r"holds no manifest\.json"):
            Bundle.open(draft.path)
        raise RuntimeError("export failed")
    assert os.listdir(tmp_path) == []


def test_draft_entry(tmp_path):
    with draft_bundle(tmp_path / "new") as draft:
        (draft.folder("a/b") / "c").write_bytes(b"abc")
        entry = draft.entry(draft.path / "a" / "b" / "c")
    assert (entry.path, entry.bytes) == ("a/b/c", 3)
    assert entry.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_check_output_missing_parent(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"/gone does not exist; make it first"):
        check_output(tmp_path / "gone" / "new", overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_check_output_foreign_folder(tmp_path, overwrite):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(FileExistsError, match="photos exists and is not a bundle; choose another place with -o"):
        check_output(tmp_path / "photos", overwrite=overwrite)


def test_check_output_file(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=r"notes\.txt exists and is not a bundle"):
        check_output(tmp_path / "notes.txt", overwrite=True)


def test_check_output_link(tmp_path, smallest_bundle):
    (tmp_path / "link").symlink_to(smallest_bundle)
    with pytest.raises(FileExistsError, match="link is a link; choose the folder itself"):
        check_output(tmp_path / "link", overwrite=True)


def test_check_output_bundle(smallest_bundle):
    with pytest.raises(FileExistsError, match=r"holds a bundle; replace it with --overwrite, or choose another place"):
        check_output(smallest_bundle, overwrite=False)
    check_output(smallest_bundle, overwrite=True)


def test_check_output_free_empty_or_unfinished(smallest_bundle, tmp_path):
    (tmp_path / "empty").mkdir()
    (smallest_bundle / MANIFEST).unlink()
    for output in (tmp_path / "free", tmp_path / "empty", smallest_bundle):
        check_output(output, overwrite=False)


def test_overwrite_replaces_all_of_the_old_bundle(smallest_export, tmp_path):
    output = tmp_path / "new"
    write_bundle(smallest_export, output, name="old")
    (output / "engines").mkdir()
    (output / "engines" / "old.engine").touch()
    write_bundle(smallest_export, output, name="new", overwrite=True)
    assert name_of(output) == "new"
    assert not (output / "engines").exists()
    assert os.listdir(tmp_path) == ["new"]


def test_unfinished_folder_is_replaced(smallest_export, tmp_path):
    write_bundle(smallest_export, tmp_path / "new", name="old")
    (tmp_path / "new" / MANIFEST).unlink()
    write_bundle(smallest_export, tmp_path / "new", name="new")
    assert name_of(tmp_path / "new") == "new"


def test_what_came_during_the_export_is_not_replaced(smallest_export, tmp_path):
    output = tmp_path / "new"
    with draft_bundle(output) as draft:
        output.mkdir()
        (output / "thesis.tex").touch()
        with pytest.raises(FileExistsError, match="is not a bundle"):
            commit_bundle(draft, smallest_export.manifest, output, overwrite=True)
    assert (output / "thesis.tex").exists()


def stale_draft(parent, name=".new.abc.partial"):
    folder = parent / name
    folder.mkdir()
    (folder / MARKER).touch()
    return folder


def test_stale_drafts_are_removed_at_the_next_export(tmp_path):
    stale = stale_draft(tmp_path)
    (stale / "onnx").mkdir()
    with draft_bundle(tmp_path / "new"):
        assert not stale.exists()


def test_stale_draft_that_has_no_marker_yet_is_removed(tmp_path):
    (tmp_path / ".new.abc.partial").mkdir()
    with draft_bundle(tmp_path / "new") as draft:
        assert os.listdir(tmp_path) == [draft.path.name]


def test_drafts_of_others_stay(tmp_path):
    other, foreign = stale_draft(tmp_path, ".newer.abc.partial"), tmp_path / ".new.files.partial"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    with draft_bundle(tmp_path / "new"):
        pass
    assert other.exists()
    assert (foreign / "thesis.tex").exists()


def test_drafts_that_are_being_written_stay(tmp_path):
    with draft_bundle(tmp_path / "new") as first:
        with draft_bundle(tmp_path / "new") as second:
            assert first.path != second.path
        assert first.path.is_dir()


def test_draft_of_another_process_stays_until_it_is_killed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from saishiki.export.bundle_writer import draft_bundle\n"
        "with draft_bundle(Path(sys.argv[1])) as draft: print(draft.path, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, tmp_path / "new"], stdout=subprocess.PIPE, text=True)
    theirs = Path(child.stdout.readline().strip())
    with draft_bundle(tmp_path / "new"):
        assert theirs.is_dir()
    child.kill()
    child.communicate()
    assert theirs.is_dir()
    with draft_bundle(tmp_path / "new"):
        assert not theirs.exists()


def test_file_system_without_locks(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(95, "Operation not supported")

    stale = stale_draft(tmp_path)
    monkeypatch.setattr(bundle_writer.fcntl, "flock", flock)
    with draft_bundle(tmp_path / "new") as draft:
        assert draft.path.is_dir()
    assert stale.is_dir()


STEPS = [
    (os, "mkdir"),
    (os, "open"),
    (os, "rename"),
    (os, "fsync"),
    (os, "unlink"),
    (os, "rmdir"),
    (Path, "write_bytes"),
    (Path, "unlink"),
]
KILLED = 77


def die_at(step):
    """Makes this process end, without any clean-up, before or amid its ``step``-th change to the disk."""
    done = 0

    def counted(real):
        def call(*arguments, **keywords):
            nonlocal done
            if done == step:
                if real is Path.write_bytes:
                    real(arguments[0], arguments[1][:50])
                os._exit(KILLED)
            done += 1
            return real(*arguments, **keywords)

        return call

    for owner, name in STEPS:
        setattr(owner, name, counted(getattr(owner, name)))


def exit_code_of_child(step, action):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            die_at(step)
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_killed_at_every_step_leaves_nothing_that_loads(smallest_export, tmp_path, overwrite):
    output, killed, states = tmp_path / "out" / "new", 0, set()
    for step in range(1000):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (tmp_path / "out").mkdir()
        if overwrite:
            write_bundle(smallest_export, output, name="old")
        code = exit_code_of_child(step, lambda: write_bundle(smallest_export, output, overwrite=overwrite, name="new"))
        assert code in (0, KILLED)
        found = loadable(output.parent)
        assert found in ([], ["new"])
        # What loads is the whole old bundle or the whole new one.
        names = [name_of(output)] if found else []
        states.add(*names or [None])
        if code == 0:
            assert names == ["new"]
            break
        killed += 1
        assert names in ([], ["old"])
        write_bundle(smallest_export, output, overwrite=overwrite, name="again")
        assert name_of(output) == "again"
        assert os.listdir(output.parent) == ["new"]
    assert killed > 10
    assert states == ({"old", None, "new"} if overwrite else {None, "new"})
