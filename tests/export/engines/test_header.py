import struct
from pathlib import Path

import pytest

from saishiki.export.engines import EngineHeader, read_header
from saishiki.export.engines.header import contradiction

HEADER = EngineHeader(bytes=100, version="1.7.1.116", sms=(89,), weight_bytes=7)


def engine(path: Path, *, magic: bytes = b"vtrt", size: int = 100, mask: int = 8) -> Path:
    head = bytearray(100)
    head[:4] = magic
    head[24:28] = bytes((1, 7, 1, 116))
    struct.pack_into("<Q", head, 16, size)
    struct.pack_into("<I", head, 32, mask)
    struct.pack_into("<Q", head, 56, 7)
    path.write_bytes(head)
    return path


def test_read_header(tmp_path: Path) -> None:
    assert read_header(engine(tmp_path / "engine")) == HEADER


@pytest.mark.parametrize(("mask", "sms"), [(1, (75,)), (0b100100, (86, 121)), (0b010010, (80, 120))])
def test_read_header_names_the_compute_capabilities(tmp_path: Path, mask: int, sms: tuple[int, ...]) -> None:
    header = read_header(engine(tmp_path / "engine", mask=mask))
    assert header is not None
    assert header.sms == sms


@pytest.mark.parametrize(
    "change",
    [{"magic": b"ptrt"}, {"size": 99}, {"mask": 0}, {"mask": 0b1001000}],
    ids=["magic", "size", "no-capability", "unnamed-capability"],
)
def test_read_header_is_none_for_another_layout(tmp_path: Path, change: dict[str, bytes | int]) -> None:
    assert read_header(engine(tmp_path / "engine", **change)) is None  # type: ignore[arg-type]


def test_read_header_is_none_for_a_short_file(tmp_path: Path) -> None:
    (tmp_path / "engine").write_bytes(b"vtrt")
    assert read_header(tmp_path / "engine") is None


@pytest.mark.parametrize(
    ("sm", "version", "expected"),
    [
        (89, "1.7.1.116", None),
        (89, "1.7.1.372", None),
        (86, "1.7.1.116", "the engine is for sm89, not for sm86"),
        (89, "1.8.0.116", "the engine says that TensorRT-RTX 1.7.1.116 built it, but 1.8.0.116 did"),
    ],
    ids=["same", "build-number", "target", "version"],
)
def test_contradiction(sm: int, version: str, expected: str | None) -> None:
    assert contradiction(HEADER, sm=sm, version=version) == expected
