"""Reading trained checkpoints, and loading them strictly.

``.safetensors`` files are preferred; ``.pth``, ``.pt``, ``.ckpt``, ``.pkl`` and ``.bin`` are read with
``torch.load(weights_only=True)`` alone, which executes nothing. Known wrappings are taken off: Lightning's and DDP's
prefixes, and the dictionaries that training scripts put around a state dict.
"""

import hashlib
import pickle
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from saishiki.runtime.errors import SaishikiError

Shapes = Mapping[str, tuple[int, ...]]

PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt", ".pkl", ".bin")
NESTED_UNDER = ("state_dict", "diffusion_state_dict")
PREFIXES = ("module.", "model.")
PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class CheckpointError(SaishikiError, ValueError):
    """A checkpoint that cannot be read, or does not describe the network it should."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint under their published names, and what the file says of itself."""

    path: Path
    sha256: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {key: tuple(tensor.shape) for key, tensor in self.tensors.items()}


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint to the CPU.

    Raises ``FileNotFoundError``, or ``CheckpointError`` where the file is damaged, holds anything but tensors, or holds
    values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: expected a .safetensors, .pth or .ckpt file")
    if path.suffix == ".safetensors":
        tensors, metadata = _read_safetensors(path)
    elif path.suffix in PICKLE_SUFFIXES:
        tensors, metadata = _read_pickle(path), {}
    else:
        raise CheckpointError(f"{path}: unknown suffix {path.suffix!r}; expected .safetensors or {PICKLE_SUFFIXES}")
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors; is this the right file?")
    _check_finite(path, tensors)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Checkpoint(path, sha256, _strip_prefixes(tensors), metadata)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with path.open("rb") as file:
        if file.read(4).startswith(PICKLE_MAGIC):
            raise CheckpointError(f"{path}: is a PyTorch pickle named .safetensors; rename it to .pth and try again")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); copy or download it again") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds Python objects besides tensors, which Saishiki never executes; "
            "save the bare state_dict, or convert the file to .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable PyTorch checkpoint ({error}); copy or download it again") from error
    return _tensors_in(path, content)


def _tensors_in(path: Path, content: Any) -> dict[str, Tensor]:
    for name in NESTED_UNDER:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: expected a state_dict of tensors, bare or under one of {NESTED_UNDER}")
    return dict(content)


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    broken = [key for key, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(f"{path}: NaN or infinite values in {first_five(broken)}; the training run has diverged")


def _strip_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors


def first_five(names: Iterable[str]) -> str:
    """A readable list of at most five names: ``"a, b, c, d, e and 7 more"``."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 5} more" if len(ordered) > 5 else ""
    return ", ".join(ordered[:5]) + more


def load_strictly(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Copies the checkpoint into the module as fp32.

    Raises one ``CheckpointError`` that names every kind of disagreement: missing, unknown and mis-shaped keys.
    """
    expected = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    check_shapes(checkpoint.path, checkpoint.shapes, expected)
    module.load_state_dict({key: tensor.to(torch.float32) for key, tensor in checkpoint.tensors.items()})


def check_shapes(path: Path, given: Shapes, expected: Shapes) -> None:
    """Raises one ``CheckpointError`` naming the missing, unknown and mis-shaped keys, five of each."""
    shared = given.keys() & expected.keys()
    mis_shaped = [f"{key} {given[key]} instead of {expected[key]}" for key in shared if given[key] != expected[key]]
    problems = {
        "missing": expected.keys() - given.keys(),
        "unknown": given.keys() - expected.keys(),
        "mis-shaped": mis_shaped,
    }
    found = [f"{kind}: {first_five(names)}" for kind, names in problems.items() if names]
    if found:
        raise CheckpointError(f"{path}: the checkpoint does not fit the network its shapes describe; " + "; ".join(found))


def matching_numbers(keys: Collection[str], prefix: str) -> list[int]:
    """The distinct numbers that follow ``prefix`` in the keys, ascending: ``a.0.x, a.2.y -> [0, 2]`` for prefix ``a.``."""
    following = (key.removeprefix(prefix).split(".", 1)[0] for key in keys if key.startswith(prefix))
    return sorted({int(number) for number in following if number.isdigit()})
