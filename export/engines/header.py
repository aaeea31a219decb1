"""The first bytes of a TensorRT-RTX engine, as observed in version 1.7 (the format is not documented).

They say without a GPU what an engine was built for and by which version. Anything that does not look as expected reads
as None, and is then neither reported nor checked.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

from saishiki.export.engines.target import RTX_SMS

_HEADER_BYTES = 64
_MAGIC = b"vtrt"


@dataclass(frozen=True)
class EngineHeader:
    """Size of the file, version of the builder, compute capabilities of the engine, and bytes of its weights."""

    bytes: int
    version: str
    sms: tuple[int, ...]
    weight_bytes: int


def read_header(path: Path) -> EngineHeader | None:
    """The header of an engine, or None where the file does not begin like one of TensorRT-RTX 1.7."""
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    if len(head) < _HEADER_BYTES or not head.startswith(_MAGIC):
        return None
    (size,) = struct.unpack_from("<Q", head, 16)
    (mask,) = struct.unpack_from("<I", head, 32)
    (weight_bytes,) = struct.unpack_from("<Q", head, 56)
    sms = tuple(sm for bit, sm in enumerate(RTX_SMS) if mask >> bit & 1)
    if size != path.stat().st_size or not sms or mask >> len(RTX_SMS):
        return None
    return EngineHeader(size, ".".join(map(str, head[24:28])), sms, weight_bytes)


def contradiction(header: EngineHeader, *, sm: int, version: str) -> str | None:
    """What the header says against an engine for ``sm`` by builder ``version``, or None where both agree.

    Versions are compared by their first three numbers: the fourth is a single byte in the header.
    """
    if header.sms != (sm,):
        return f"the engine is for {', '.join(f'sm{found}' for found in header.sms)}, not for sm{sm}"
    if header.version.split(".")[:3] != version.split(".")[:3]:
        return f"the engine says that TensorRT-RTX {header.version} built it, but {version} did"
    return None
