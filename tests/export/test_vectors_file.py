import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file, save_file

from saishiki.export.vectors_file import vectors_file
from saishiki.runtime.errors import BundleError
from saishiki.runtime.vectors import StoredVectors

ARRAYS = {
    "a/in/x": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a/in/t": np.array([5], dtype=np.int64),
    "a/scalar": np.array(2.5, dtype=np.float64),
    "b/in/x": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b/flat": np.arange(6, dtype=np.float32),
    "b/half": np.arange(3, dtype=np.float16)[::-1],
    "b/empty": np.zeros((0, 4), dtype=np.float32),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "parity.safetensors"
    with vectors_file(path) as vectors:
        vectors.update(ARRAYS)
        assert_same(vectors)
    return path


def assert_same(got):
    assert set(got) == set(ARRAYS)
    for name, want in ARRAYS.items():
        assert (got[name].dtype, got[name].shape) == (want.dtype, want.shape)
        assert (got[name] == want).all()


def test_stored_vectors_are_what_was_written(path):
    assert_same(StoredVectors(path))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_equal_vectors_are_stored_once(path):
    stored = load_file(path)
    assert set(ARRAYS) - set(stored) == {"b/in/x"}
    assert all((stored[name] == ARRAYS[name]).all() for name in stored)


def test_stored_vectors_of_a_plain_file(tmp_path):
    save_file({"a": ARRAYS["a/in/x"]}, tmp_path / "plain.safetensors")
    stored = StoredVectors(tmp_path / "plain.safetensors")
    assert list(stored) == ["a"]
    assert (stored["a"] == ARRAYS["a/in/x"]).all()
    with pytest.raises(KeyError):
        stored["b"]


def test_a_vector_is_given_once(tmp_path):
    with vectors_file(tmp_path / "v.safetensors") as vectors:
        vectors["a"] = np.zeros(3, np.float32)
        vectors["a"] = np.zeros(3, np.float32)
        with pytest.raises(ValueError, match="the vector a is written already, with another content"):
            vectors["a"] = np.ones(3, np.float32)
        with pytest.raises(TypeError, match="nothing is ever taken out"):
            del vectors["a"]


def test_vectors_of_a_failed_export_leave_no_file(tmp_path):
    def fail(vectors):
        vectors["a"] = np.zeros(3, np.float32)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"), vectors_file(tmp_path / "v.safetensors") as vectors:
        fail(vectors)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"not a file of tensors", b"\x02\0\0\0\0\0\0\0{}\1"])
def test_a_damaged_file_of_vectors(tmp_path, content):
    (tmp_path / "parity.safetensors").write_bytes(content)
    with pytest.raises(BundleError, match=r"parity\.safetensors is not a safetensors file .*; export again"):
        StoredVectors(tmp_path / "parity.safetensors")


def test_vectors_are_not_held_in_memory(tmp_path):
    before = psutil.Process().memory_info().rss
    with vectors_file(tmp_path / "v.safetensors") as vectors:
        for i in range(16):
            vectors[str(i)] = np.full(2**21, i, np.float32)
    stored = StoredVectors(tmp_path / "v.safetensors")
    assert [stored[str(i)][-1] for i in range(16)] == list(range(16))
    assert psutil.Process().memory_info().rss - before < 64 * 2**20
    assert (tmp_path / "v.safetensors").stat().st_size > 16 * 2**23
