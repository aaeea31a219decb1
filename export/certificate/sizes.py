"""The sizes that modules and runs are recorded at."""

import math
from collections.abc import Mapping

from saishiki.runtime.signature import Profile, Signature, Sizes, profiles_for

FULL_RUN_PX = 128 * 128
"""Pictures above it are large: what takes long is done for smaller ones."""
REDUCED_PX = 64 * 64
"""Of the smaller ones, about."""


def corners_of(signature: Signature, profiles: tuple[Profile, ...]) -> tuple[Sizes, ...]:
    """The distinct corners of all profiles, over the module's own symbols."""
    corners = [corner for profile in profiles_for(signature, profiles) for corner in profile.corners()]
    return tuple({tuple(corner.items()): corner for corner in corners}.values())


def run_sizes(profiles: tuple[Profile, ...]) -> tuple[Sizes, ...]:
    """The sizes of the runs to record: every profile's tuned size, in its smallest batch."""
    all_sizes = [{**p.opt, "batch": p.min["batch"]} for p in map(_of_pictures, profiles)]
    return tuple(sizes for i, sizes in enumerate(all_sizes) if sizes not in all_sizes[:i])


def _of_pictures(profile: Profile) -> Profile:
    return profile.restricted_to(("batch", "height", "width"))


def is_large(sizes: Sizes) -> bool:
    """Whether what takes long is done at :func:`reduced` sizes instead; never so where no picture is concerned."""
    return sizes.get("height", 1) * sizes.get("width", 1) > FULL_RUN_PX


def reduced(sizes: Sizes, multiples: Mapping[str, int]) -> dict[str, int]:
    """Batch, height and width of one small picture of nearly the same shape."""
    scale = math.sqrt(REDUCED_PX / (sizes["height"] * sizes["width"]))

    def shrink(symbol: str) -> int:
        multiple = multiples.get(symbol, 1)
        # At least two: norms over a single position at the deepest level would be of next to nothing.
        return max(2, round(sizes[symbol] * scale / multiple)) * multiple

    return {"batch": 1, "height": shrink("height"), "width": shrink("width")}
