import hashlib
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn

from saishiki.models import CheckpointError, read_checkpoint
from saishiki.models.checkpoints import first_five, load_strictly, matching_numbers

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5])}


def assert_same(got, want=TENSORS):
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in want)


def test_read_checkpoint_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path, metadata={"config": "{}"})
    checkpoint = read_checkpoint(str(path))
    assert_same(checkpoint.tensors)
    assert checkpoint.metadata == {"config": "{}"}
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.shapes == {"a.weight": (2, 3), "b": (1,)}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".pkl", ".bin", ".PTH"])
def test_read_checkpoint_pickle_suffixes(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    torch.save(TENSORS, path)
    assert_same(read_checkpoint(path).tensors)


def prefixed(prefix):
    return {prefix + key: tensor for key, tensor in TENSORS.items()}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(TENSORS, id="bare"),
        pytest.param(prefixed("module."), id="ddp"),
        pytest.param({"epoch": 3, "state_dict": prefixed("model.")}, id="lightning"),
        pytest.param({"state_dict": prefixed("model.module.")}, id="lightning-ddp"),
        pytest.param({"state_dict": prefixed("module.model.")}, id="ddp-lightning"),
        pytest.param(
            {
                "epoch": 3,
                "loss": 0.1,
                "diffusion_state_dict": TENSORS,
                "ema_shadow": {"weight": torch.zeros(1)},
                "optimizer_state_dict": {"state": {0: {"step": 1}}},
            },
            id="pre-2023",
        ),
    ],
)
def test_read_checkpoint_takes_wrappings_off(tmp_path, content):
    torch.save(content, tmp_path / "model.pkl")
    assert_same(read_checkpoint(tmp_path / "model.pkl").tensors)


def test_read_checkpoint_keeps_a_prefix_that_not_all_keys_have(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "model.pth")
    assert set(read_checkpoint(tmp_path / "model.pth").tensors) == {"module.a", "b"}


def test_read_checkpoint_legacy_zipless_format(tmp_path):
    torch.save(TENSORS, tmp_path / "model.pth", _use_new_zipfile_serialization=False)
    assert_same(read_checkpoint(tmp_path / "model.pth").tensors)


class Bomb:
    """Runs a command when it is unpickled without protection."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch '{self.witness}'",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_read_checkpoint_malicious_pickle_is_refused_and_not_executed(tmp_path, legacy):
    path, witness = tmp_path / "evil.pth", tmp_path / "executed"
    torch.save({**TENSORS, "x": Bomb(witness)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        CheckpointError, match=r"evil\.pth: holds Python objects.*never executes; save the bare state_d"
    ):
        read_checkpoint(path)
    assert not witness.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_read_checkpoint_malicious_plain_pickle_is_refused_and_not_executed(tmp_path, protocol):
    path, witness = tmp_path / "evil.pkl", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Bomb(witness), protocol=protocol))
    with pytest.raises(CheckpointError, match="never executes"):
        read_checkpoint(path)
    assert not witness.exists()


def test_the_bomb_goes_off_without_protection(tmp_path):
    torch.save(Bomb(tmp_path / "executed"), tmp_path / "evil.pth")
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "executed").exists()


def test_read_checkpoint_pickle_named_safetensors(tmp_path):
    torch.save(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"is a PyTorch pickle named \.safetensors; rename it to \.pth"):
        read_checkpoint(tmp_path / "model.safetensors")


def test_read_checkpoint_safetensors_named_pth(tmp_path):
    save_file(TENSORS, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"does not begin like a PyTorch checkpoint.*or name it \.safetensors"):
        read_checkpoint(tmp_path / "model.pth")


def test_read_checkpoint_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*gone\.pth: expected a \.safetensors"):
        read_checkpoint(tmp_path / "gone.pth")


def test_read_checkpoint_folder(tmp_path):
    folder = tmp_path / "model.safetensors"
    folder.mkdir()
    with pytest.raises(IsADirectoryError, match=r"is a folder; expected one \.safetensors, .* give the file in it"):
        read_checkpoint(folder)


def test_read_checkpoint_unknown_suffix(tmp_path):
    (tmp_path / "model.onnx").touch()
    with pytest.raises(CheckpointError, match=r"unknown suffix '\.onnx'; expected one of \.safetensors, \.pth.*rename"):
        read_checkpoint(tmp_path / "model.onnx")


WHOLE = save(TENSORS)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(WHOLE[:-5], id="truncated"),
        pytest.param(WHOLE[:20], id="truncated-header"),
        pytest.param(struct.pack("<Q", 2 << 30) + WHOLE[8:], id="header-of-2-GiB"),
        pytest.param(struct.pack("<Q", 8) + b"not json", id="header-not-json"),
        pytest.param(struct.pack("<Q", 2) + b"[]", id="header-not-an-object"),
        pytest.param(b"\x00" * 64, id="zeros"),
    ],
)
def test_read_checkpoint_damaged_safetensors(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"not a readable safetensors file \(.+\); copy or download it again|no tens"
    ):
        read_checkpoint(path)


def damaged_pickles(tmp_path):
    torch.save(TENSORS, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    pickled = pickle.dumps(1, protocol=2)
    return {
        "empty": b"",
        "text": b"hello world, this is not a checkpoint",
        "truncated": whole[: len(whole) // 2],
        "truncated legacy": pickled[:3],
        "magic alone": b"PK\x03\x04",
    }


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "truncated legacy", "magic alone"])
def test_read_checkpoint_damaged_pickle(tmp_path, damage):
    path = tmp_path / "model.pth"
    path.write_bytes(damaged_pickles(tmp_path)[damage])
    with pytest.raises(CheckpointError, match="copy or download it again") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


def test_read_checkpoint_every_damaged_byte_gives_a_checkpoint_error_or_tensors(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    refused = 0
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            read_checkpoint(path)
        except CheckpointError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    "content",
    [
        pytest.param([torch.ones(1)], id="list"),
        pytest.param({"a": torch.ones(1), "epoch": 3}, id="not-only-tensors"),
        pytest.param({1: torch.ones(1)}, id="keys-are-numbers"),
        pytest.param({"a": torch.eye(3).to_sparse()}, id="sparse"),
    ],
)
def test_read_checkpoint_not_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(
        CheckpointError, match="expected a state_dict of dense tensors, bare or under state_dict or diff"
    ):
        read_checkpoint(tmp_path / "model.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_read_checkpoint_without_tensors(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    torch.save({}, path) if suffix == ".pth" else save_file({}, path)
    with pytest.raises(CheckpointError, match="holds no tensors; is this the right file"):
        read_checkpoint(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_read_checkpoint_not_finite(tmp_path, value, dtype):
    save_file(
        {"good": torch.ones(3), "broken.weight": torch.tensor([0, value], dtype=dtype)}, tmp_path / "m.safetensors"
    )
    with pytest.raises(
        CheckpointError, match=r"NaN or infinite values in broken\.weight; .* take an earlier checkpoint"
    ):
        read_checkpoint(tmp_path / "m.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_load_strictly_other_floats_become_fp32(tmp_path, dtype):
    tensors = {"weight": torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).to(dtype), "bias": torch.ones(2)}
    save_file(tensors, tmp_path / "m.safetensors")
    module = nn.Linear(3, 2)
    load_strictly(module, read_checkpoint(tmp_path / "m.safetensors"))
    assert module.weight.dtype == torch.float32
    assert torch.equal(module.weight, tensors["weight"].to(torch.float32))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_load_strictly_other_dtypes(tmp_path, dtype):
    save_file({"weight": torch.ones(2, 3).to(dtype), "bias": torch.ones(2)}, tmp_path / "m.safetensors")
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(
        CheckpointError, match=rf"not fp32, fp16, bf16 or fp64: weight {name}; save the whole state_dict"
    ):
        load_strictly(nn.Linear(3, 2), read_checkpoint(tmp_path / "m.safetensors"))


def test_load_strictly_names_every_disagreement_at_once(tmp_path):
    tensors = {f"extra.{i}": torch.ones(1) for i in range(8)} | {"0.weight": torch.ones(2, 4), "0.bias": torch.ones(2)}
    save_file(tensors, tmp_path / "m.safetensors")
    network = nn.Sequential(nn.Linear(3, 2), *(nn.Linear(1, 1) for _ in range(3)))
    with pytest.raises(CheckpointError) as error:
        load_strictly(network, read_checkpoint(tmp_path / "m.safetensors"))
    message = str(error.value)
    assert "missing: 1.bias, 1.weight, 2.bias, 2.weight, 3.bias and 1 more; " in message
    assert "unknown: extra.0, extra.1, extra.2, extra.3, extra.4 and 3 more; " in message
    assert "mis-shaped: 0.weight (2, 4) instead of (2, 3); " in message


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, "k0"), (5, "k0, k1, k2, k3, k4"), (6, "k0, k1, k2, k3, k4 and 1 more")],
)
def test_first_five(count, expected):
    assert first_five({f"k{i}" for i in range(count)}) == expected


def test_matching_numbers():
    keys = ["a.10.x", "a.2.y", "a.2.z", "a.b.3", "ab.7", "a.\u00b2.x"]
    assert matching_numbers(keys, "a.") == [2, 10]


def test_read_checkpoint_does_not_change_the_file(tmp_path):
    save_file(TENSORS, tmp_path / "m.safetensors")
    checkpoint = read_checkpoint(tmp_path / "m.safetensors")
    module = nn.Module()
    module.a, module.b = nn.Linear(3, 2, bias=False), nn.Parameter(torch.zeros(1))
    load_strictly(module, checkpoint)
    with torch.no_grad():
        module.a.weight.mul_(2)
    assert_same(load_file(tmp_path / "m.safetensors"))
