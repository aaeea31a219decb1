import pytest

from saishiki.runtime.bench.files import check_folder, write_whole


def test_write_whole_replaces_a_file(tmp_path):
    (tmp_path / "a.json").write_text("old")
    write_whole(tmp_path / "a.json", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_bytes() == b"new"


def test_write_whole_leaves_nothing_behind_when_it_fails(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    with pytest.raises(OSError, match="folder"):
        write_whole(tmp_path / "folder", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_check_folder(tmp_path):
    check_folder(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match=r"none does not exist: create it before writing a\.json"):
        check_folder(tmp_path / "none" / "a.json")
    with pytest.raises(IsADirectoryError, match="is a folder; expected the name of a file"):
        check_folder(tmp_path)
