"""What a user asks an export for: sizes, batches and targets, and the profiles that follow from them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

from saishiki.export.engines import Target
from saishiki.models import LoadOptions
from saishiki.runtime.manifest import Precision
from saishiki.runtime.pipelines.colorizediffusion import GUIDANCES, Guidance, Mode
from saishiki.runtime.signature import Profile

MAX_SIDE_PX = 4096
MAX_BATCH = 64
STEPS = (1, 10, 999)
"""Steps of a schedule that the time projection's engine is built for: the fewest, the published number, the most."""

Word = TypeVar("Word", bound=str)

_SIDES = re.compile(r"(\d+)(?:x(\d+))?")


@dataclass(frozen=True)
class ExportRequest:
    """An export.

    Args:
        targets: the engines to build besides the ONNX graphs.
        profiles: over batch, height, width and steps; those without sides are for squares of the family's own size.
        precisions: of the graphs; modules that must stay in fp32 do so in any case.
        thorough: certify runs of all steps at any size, however long that takes.
        keep_failed: write the bundle even where its certificate fails; it is marked, and refuses to load.
        overwrite: replace a bundle that is already there.
        rebuild: do everything anew even where an earlier bundle was made from the same checkpoint by the same request.
        command: the command line, for the manifest.
    """

    checkpoint: Path
    output: Path
    targets: tuple[Target, ...]
    profiles: tuple[Profile, ...]
    load: LoadOptions
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    thorough: bool = False
    keep_failed: bool = False
    overwrite: bool = False
    rebuild: bool = False
    command: str = "export-engines"


def parse_profiles(sizes: Sequence[str], batch: str) -> tuple[Profile, ...]:
    """One profile per size, each for the whole range of batches.

    Args:
        sizes: ``256`` (square), ``256x384`` (height x width), or ``128:256:512`` (smallest, tuned for, largest).
            None at all gives one profile without sides, which :func:`with_sides` adds.
        batch: ``1``, a range ``1:4``, or ``1:2:4``.

    Raises ``ValueError`` for a range that does not ascend or a value out of bounds.
    """
    batches = _range([_whole(part, "batch", batch, MAX_BATCH) for part in batch.split(":")], "batch", batch)
    if not sizes:
        return (Profile(*({"batch": b, "steps": s} for b, s in zip(batches, STEPS, strict=True))),)
    return tuple(_profile(size, batches) for size in sizes)


def with_sides(profile: Profile, side_px: int) -> Profile:
    """The profile, for squares of this side where it has no sides of its own."""
    if "height" in profile.opt:
        return profile
    square = {"height": side_px, "width": side_px}
    return Profile({**profile.min, **square}, {**profile.opt, **square}, {**profile.max, **square})


def parse_precision(text: str) -> tuple[Precision, ...]:
    """The precisions of graphs: ``fp16``, ``fp32``, or ``both``. Raises ``ValueError`` for any other word."""
    known: dict[str, tuple[Precision, ...]] = {"both": ("fp32", "fp16"), "fp16": ("fp16",), "fp32": ("fp32",)}
    if text not in known:
        raise ValueError(f"--precision {text}: expected {', '.join(known)}")
    return known[text]


def parse_modes(text: str | None) -> tuple[Mode, ...] | None:
    """``vanilla,background``: the modes to export; raises ``ValueError`` for a word that is no mode."""
    return None if text is None else _known(text, "--modes", get_args(Mode))


def parse_guidance(text: str | None) -> tuple[Guidance, ...] | None:
    """``none,reference``: the guidance to export; raises ``ValueError`` for a word that is none."""
    return None if text is None else _known(text, "--guidance", GUIDANCES)


def _known(text: str, flag: str, known: Sequence[Word]) -> tuple[Word, ...]:
    names = names_in(text)
    if not names or not set(names) <= set(known):
        raise ValueError(f"{flag} {text}: expected some of {', '.join(map(str, known))}, with commas")
    return tuple(word for word in known if word in names)


def names_in(text: str | None) -> tuple[str, ...]:
    """The words between commas; none where there is no text."""
    return tuple(name for part in (text or "").split(",") if (name := part.strip()))


def _profile(size: str, batches: tuple[int, int, int]) -> Profile:
    corners = [_sides(part, size) for part in size.split(":")]
    heights = _range([height for height, _ in corners], "size", size)
    widths = _range([width for _, width in corners], "size", size)
    points = [
        {"batch": b, "height": h, "width": w, "steps": s}
        for b, h, w, s in zip(batches, heights, widths, STEPS, strict=True)
    ]
    return Profile(*points)


def _sides(text: str, size: str) -> tuple[int, int]:
    match = _SIDES.fullmatch(text)
    if match is None:
        raise ValueError(f"--size {size}: expected 256, 256x384 (height x width) or a range 128:256:512")
    height, width = match[1], match[2] or match[1]
    return _whole(height, "size", size, MAX_SIDE_PX), _whole(width, "size", size, MAX_SIDE_PX)


def _whole(text: str, option: str, given: str, most: int) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise ValueError(f"--{option} {given}: expected whole numbers between 1 and {most}, got {text!r}")
    return int(text)


def _range(values: Sequence[int], option: str, given: str) -> tuple[int, int, int]:
    """Smallest, tuned for, largest; of two values the engine is tuned for the first."""
    if len(values) > 3 or list(values) != sorted(values):
        raise ValueError(f"--{option} {given}: expected one value, or two or three with colons, smallest first")
    return values[0], values[len(values) // 2 if len(values) != 2 else 0], values[-1]
