"""Reading trained checkpoints, and loading them strictly.

``.safetensors`` files are preferred; ``.pth``, ``.pt``, ``.ckpt``, ``.pkl`` and ``.bin`` are read with
``torch.load(weights_only=True)`` alone, which executes nothing. Known wrappings are taken off: Lightning's and DDP's
prefixes, and the dictionaries that training scripts put around a state dict. Tensors stay in the file until they are
asked for, so that a checkpoint may be larger than the memory.
"""

import hashlib
import pickle
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from saishiki.models.stored_tensors import StoredTensors, stored_tensors
from saishiki.runtime.errors import SaishikiError

Shapes = Mapping[str, tuple[int, ...]]

PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt", ".pkl", ".bin")
NESTED_UNDER = ("state_dict", "diffusion_state_dict")
PREFIXES = ("module.", "model.")
ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = (ZIP_MAGIC, b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class CheckpointError(SaishikiError, ValueError):
    """A checkpoint that cannot be read, or does not describe the network it should."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint under their published names, and what the file says of itself.

    Tensors that :func:`read_checkpoint` gives are read at every access: ask for one only where its values matter.
    """

    path: Path
    sha256: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def layout(self) -> Mapping[str, Tensor]:
        """Every tensor on the meta device: its dtype and shape, without its values."""
        stored = self.tensors
        return stored.layout if isinstance(stored, StoredTensors) else {k: t.to("meta") for k, t in stored.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {key: tuple(tensor.shape) for key, tensor in self.layout.items()}


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a checkpoint for reading to the CPU, and reads all of it once to check it.

    Raises ``FileNotFoundError``, or ``CheckpointError`` where the file is damaged, holds anything but tensors, or holds
    values that are not finite.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(
            f"{path} is a folder; expected one .safetensors, .pth or .ckpt file: give the file in it"
        )
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: expected a .safetensors, .pth or .ckpt file; check the path")
    suffix = path.suffix.lower()
    if suffix != ".safetensors" and suffix not in PICKLE_SUFFIXES:
        known = ", ".join((".safetensors", *PICKLE_SUFFIXES))
        raise CheckpointError(f"{path}: unknown suffix {path.suffix!r}; expected one of {known}: rename the file")
    is_safetensors = suffix == ".safetensors"
    tensors = _open_safetensors(path) if is_safetensors else _open_pickle(path)
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors; is this the right file?")
    _check_finite(path, tensors)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Checkpoint(path, sha256, tensors, _metadata(path) if is_safetensors else {})


def _open_safetensors(path: Path) -> StoredTensors:
    if _starts_like_pickle(path):
        raise CheckpointError(f"{path}: is a PyTorch pickle named .safetensors; rename it to .pth and try again")
    return stored_tensors(lambda: _strip_prefixes(_map_safetensors(path)))


def _map_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, "safetensors file", error) from error


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt", device="cpu") as file:
        return dict(file.metadata() or {})


def _open_pickle(path: Path) -> StoredTensors:
    with path.open("rb") as file:
        is_zip = file.read(4) == ZIP_MAGIC
    if is_zip:
        return stored_tensors(lambda: _strip_prefixes(_load_pickle(path, mapped=True)))
    # PyTorch's format before 1.6 cannot be mapped into memory.
    tensors = _strip_prefixes(_load_pickle(path, mapped=False))
    return stored_tensors(lambda: tensors)


def _load_pickle(path: Path, *, mapped: bool) -> dict[str, Tensor]:
    if not _starts_like_pickle(path):
        raise CheckpointError(
            f"{path}: does not begin like a PyTorch checkpoint; copy or download it again, "
            "or name it .safetensors where it is one"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's doubts about unusual pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds Python objects besides tensors, which Saishiki never executes; "
            "save the bare state_dict, or convert the file to .safetensors"
        ) from error
    except Exception as error:  # what a damaged pickle raises depends on where it is damaged
        raise _unreadable(path, "PyTorch checkpoint", error) from error
    return _tensors_in(path, content)


def _starts_like_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4).startswith(PICKLE_MAGIC)


def _unreadable(path: Path, kind: str, error: Exception) -> CheckpointError:
    lines = str(error).splitlines() or [type(error).__name__]
    return CheckpointError(f"{path}: not a readable {kind} ({lines[0]}); copy or download it again")


def _tensors_in(path: Path, content: Any) -> dict[str, Tensor]:
    for name in NESTED_UNDER:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(_is_named_tensor(*item) for item in content.items()):
        nested = " or ".join(NESTED_UNDER)
        raise CheckpointError(
            f"{path}: expected a state_dict of dense tensors, bare or under {nested}; save it like that"
        )
    return dict(content)


def _is_named_tensor(key: object, value: object) -> bool:
    dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized
    return isinstance(key, str) and dense


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    broken = [key for key, tensor in tensors.items() if tensor.dtype in FLOATS and not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{path}: NaN or infinite values in {first_five(broken)}; the training run has diverged: "
            "take an earlier checkpoint"
        )


def _strip_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Takes off every known prefix that all keys share, whichever was put on first."""
    for prefix in PREFIXES:
        if tensors and all(key.startswith(prefix) for key in tensors):
            return _strip_prefixes({key.removeprefix(prefix): tensor for key, tensor in tensors.items()})
    return tensors


def first_five(names: Iterable[str]) -> str:
    """A readable list of at most five names: ``"a, b, c, d, e and 7 more"``."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 5} more" if len(ordered) > 5 else ""
    return ", ".join(ordered[:5]) + more


def load_strictly(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Gives the module the checkpoint's tensors as fp32; it may have been made on the meta device.

    Raises one ``CheckpointError`` that names every kind of disagreement: missing, unknown and mis-shaped keys, and
    tensors that are not plain floating-point numbers.
    """
    check_fit(checkpoint, module.state_dict())
    module.load_state_dict({key: fp32(tensor) for key, tensor in checkpoint.tensors.items()}, assign=True)


def fp32(tensor: Tensor) -> Tensor:
    """The tensor as fp32, contiguous."""
    return tensor.to(torch.float32).contiguous()


def check_fit(checkpoint: Checkpoint, expected: Mapping[str, Tensor]) -> None:
    """Raises one ``CheckpointError`` naming the missing, unknown, mis-shaped and mis-typed keys, five of each."""
    given = checkpoint.layout
    shared = given.keys() & expected.keys()
    shapes = {key: (tuple(given[key].shape), tuple(expected[key].shape)) for key in shared}
    problems = {
        "missing": expected.keys() - given.keys(),
        "unknown": given.keys() - expected.keys(),
        "mis-shaped": [f"{key} {got} instead of {wanted}" for key, (got, wanted) in shapes.items() if got != wanted],
        "not fp32, fp16, bf16 or fp64": [
            f"{key} {str(given[key].dtype).removeprefix('torch.')}" for key in shared if given[key].dtype not in FLOATS
        ],
    }
    found = [f"{kind}: {first_five(names)}" for kind, names in problems.items() if names]
    if found:
        raise CheckpointError(
            f"{checkpoint.path}: does not fit the network that its shapes describe; {'; '.join(found)}; "
            "save the whole state_dict of the unmodified, unquantized network"
        )


def matching_numbers(keys: Collection[str], prefix: str) -> list[int]:
    """The distinct numbers that follow ``prefix`` in the keys, ascending: ``a.0.x, a.2.y -> [0, 2]`` for ``a.``."""
    following = (key.removeprefix(prefix).split(".", 1)[0] for key in keys if key.startswith(prefix))
    return sorted({int(number) for number in following if number.isdecimal()})
