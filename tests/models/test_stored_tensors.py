import psutil
import pytest
import torch
from safetensors.torch import save_file

from saishiki.models import read_checkpoint, stored_tensors
from saishiki.models.stored_tensors import StoredTensor, StoredTensors

MEGABYTE = 2**20


def counted(tensors):
    """Stored tensors of a file that is a dictionary, and how often it was opened."""
    opened = []

    def open_file():
        opened.append(True)
        return tensors

    return stored_tensors.stored_tensors(open_file), opened


def test_stored_tensors_gives_copies_of_what_is_stored():
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3, dtype=torch.int64)}
    stored, _ = counted(tensors)
    assert list(stored) == ["a", "b"]
    assert torch.equal(stored["a"], tensors["a"])
    assert stored["b"].dtype == torch.int64
    stored["a"].zero_()
    assert torch.equal(stored["a"], torch.arange(6.0).reshape(2, 3))


def test_stored_tensors_tell_dtypes_and_shapes_without_reading():
    def refuse():
        raise AssertionError("read")

    stored = StoredTensors({"a": StoredTensor(torch.empty(2, 3, dtype=torch.float16, device="meta"), refuse)})
    layout = stored.layout["a"]
    assert (layout.device.type, layout.dtype, tuple(layout.shape)) == ("meta", torch.float16, (2, 3))
    with pytest.raises(AssertionError, match="read"):
        stored["a"]


def test_stored_tensors_open_the_file_anew_once_enough_was_read(monkeypatch):
    monkeypatch.setattr(stored_tensors, "REOPEN_BYTES", 100)
    stored, opened = counted({"a": torch.zeros(10)})
    for expected in (1, 1, 1, 2, 2, 2, 3):
        assert stored["a"].sum() == 0
        assert len(opened) == expected


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_checkpoint_is_read_tensor_by_tensor(tmp_path, suffix):
    """Reading 128 MB once and again leaves no more in memory than what is mapped between two openings."""
    tensors = {f"t{i}": torch.full((2 * MEGABYTE,), float(i)) for i in range(16)}
    path = tmp_path / f"large{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    del tensors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_tensors, "REOPEN_BYTES", 16 * MEGABYTE)
        checkpoint = read_checkpoint(path)
        before = psutil.Process().memory_info().rss
        for i in range(16):
            assert checkpoint.tensors[f"t{i}"][-1] == i
        grown = psutil.Process().memory_info().rss - before
    assert grown < 48 * MEGABYTE
