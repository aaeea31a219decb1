"""Writing a .safetensors file with one tensor in memory at a time; the library's own writers take all at once.

The format: the length of the header as eight bytes, little-endian; the header, JSON that is padded with spaces to a
multiple of eight; then the tensors, each from and to the offsets that the header states (huggingface/safetensors,
README, "Format").
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {torch.float32: "F32", torch.float16: "F16"}
ALIGNMENT = 8


def write_safetensors(
    path: Path, layout: Mapping[str, Tensor], value_of: Callable[[str], Tensor], *, metadata: Mapping[str, str]
) -> None:
    """Writes a file that appears when it is whole.

    Args:
        layout: tensors on the meta device, in the order they are written.
        value_of: gives each by name; its dtype and shape must be the layout's.

    Raises ``ValueError`` where a value is not of its layout, with no file left behind.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(header(layout, metadata))
            for name, expected in layout.items():
                value = value_of(name)
                _check(name, value, expected)
                file.write(value.contiguous().numpy().data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def header(layout: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """All that comes before the tensors."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in layout.items():
        end = offset + tensor.nbytes
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _check(name: str, value: Tensor, expected: Tensor) -> None:
    if (value.dtype, value.shape) != (expected.dtype, expected.shape):
        raise ValueError(
            f"{name}: expected {expected.dtype} {list(expected.shape)}, got {value.dtype} {list(value.shape)}"
        )
