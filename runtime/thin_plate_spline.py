"""The random thin-plate-spline warp of the reference that AnimeDiffusion trains with.

The corners stay, two points of the diagonal slide along it, and a thin plate spline carries the rest, so that a picture
cannot be coloured by copying its reference pixel for pixel. The published code also warps at inference; here nothing
does unless asked to. Source: xq-meng/AnimeDiffusion 1582eb0 (``warp_image``); remap as OpenCV 4's bicubic.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saishiki.runtime.errors import ImageError

Map = NDArray[np.float32]

CORNERS = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))


@dataclass(frozen=True)
class ControlPoints:
    """Two points of the diagonal, at p1 and p2 in the source and at p1 + r1 and p2 + r2 in the result, of sides 1."""

    p1: float
    p2: float
    r1: float
    r2: float


def draw_control_points(rng: np.random.Generator) -> ControlPoints:
    """Random points as published: p in [0.3, 0.7], r in [-0.25, 0.25], rounded to 2 decimals, drawn p1, p2, r1, r2.

    Drawn again where both points would land on the same place.
    """
    while True:
        p1, p2 = (round(rng.uniform(0.3, 0.7), 2) for _ in range(2))
        r1, r2 = (round(rng.uniform(-0.25, 0.25), 2) for _ in range(2))
        points = ControlPoints(p1, p2, r1, r2)
        if not _coincide(points):
            return points


def sample_map(points: ControlPoints, height: int, width: int) -> tuple[Map, Map]:
    """(map_x, map_y), each (H, W) float32: for every pixel of the result, where in the source it is read, in px.

    A grid of [0, 1] is displaced and then scaled by (width, height), not by width - 1, as published: even the identity
    reads up to one pixel off. Raises ``ValueError`` where both points land on the same place.
    """
    if _coincide(points):
        raise ValueError(f"p1 + r1 and p2 + r2 are both {points.p1 + points.r1:.2f}: the spline has no solution")
    source = np.array([*CORNERS, (points.p1,) * 2, (points.p2,) * 2], np.float32)
    target = np.array([*CORNERS, (points.p1 + points.r1,) * 2, (points.p2 + points.r2,) * 2], np.float32)
    grid = np.stack(np.meshgrid(_unit_steps(width), _unit_steps(height)), axis=-1)
    position = grid + _displacement(grid, target, source - target)
    return position[..., 0] * np.float32(width), position[..., 1] * np.float32(height)


def remap_bicubic(image: NDArray[np.uint8], map_x: Map, map_y: Map) -> NDArray[np.uint8]:
    """The image read at (map_x, map_y) px with a bicubic kernel (a = -0.75), black outside: (h, w, C) uint8.

    image: (H, W, C) uint8; map_x, map_y: (h, w). Positions are rounded to 1/32 px as in OpenCV 4, whose fixed-point
    weights then agree to a level. Raises ``ImageError`` for another image and ``ValueError`` for maps that differ in
    shape or are not finite.
    """
    if image.dtype != np.uint8 or image.ndim != 3:
        raise ImageError(f"expected uint8 (H, W, C), got {image.dtype} {image.shape}")
    if map_x.shape != map_y.shape or not (np.isfinite(map_x).all() and np.isfinite(map_y).all()):
        raise ValueError(f"expected two finite maps of one shape, got {map_x.shape} and {map_y.shape}")
    columns, column_weights = _taps(map_x, image.shape[1])
    rows, row_weights = _taps(map_y, image.shape[0])
    # One black pixel on every side stands for everything outside. Planes are gathered twice as fast as pixels.
    planes = np.pad(image, ((1, 1), (1, 1), (0, 0))).reshape(-1, image.shape[2]).T.astype(np.float32, order="C")
    total = np.zeros((image.shape[2], *map_x.shape), np.float32)
    for row, row_weight in zip(rows * (image.shape[1] + 2), row_weights, strict=True):
        for column, column_weight in zip(columns, column_weights, strict=True):
            total += row_weight * column_weight * np.take(planes, row + column, axis=1)
    return np.ascontiguousarray(np.clip(np.rint(total), 0, 255).astype(np.uint8).transpose(1, 2, 0))


def warp_image(rgb: NDArray[np.uint8], points: ControlPoints) -> NDArray[np.uint8]:
    """The warped picture, (H, W, 3) uint8 as given. Raises as :func:`sample_map` and :func:`remap_bicubic` do."""
    return remap_bicubic(rgb, *sample_map(points, *rgb.shape[:2]))


def _coincide(points: ControlPoints) -> bool:
    # Two decimals are what is drawn; below a thousandth the float32 system is singular in practice.
    return abs(points.p1 + points.r1 - points.p2 - points.r2) < 1e-3


def _unit_steps(count: int) -> NDArray[np.float32]:
    return np.linspace(0, 1, count, dtype=np.float32)


def _displacement(grid: NDArray[Any], centres: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """The thin plate spline (H, W, 2) through ``values`` (6, 2) at ``centres`` (6, 2), over grid (H, W, 2)."""
    count = len(centres)
    system = np.zeros((count + 3, count + 3), np.float32)
    system[:count, :count] = _radial_terms(centres, centres)
    system[:count, count:] = _affine_terms(centres)
    system[count:, :count] = _affine_terms(centres).T
    weights = np.linalg.solve(system, np.concatenate([values, np.zeros((3, 2), np.float32)]))
    terms = np.concatenate([_radial_terms(grid, centres), _affine_terms(grid)], axis=-1)
    displacement: NDArray[Any] = terms @ weights
    return displacement


def _radial_terms(points: NDArray[Any], centres: NDArray[Any]) -> NDArray[Any]:
    """``r^2 ln(r + 1e-6)`` (..., 6) of the distances r between points (..., 2) and centres (6, 2)."""
    x, y = (points[..., axis, None] - centres[:, axis] for axis in (0, 1))
    distance = np.sqrt(np.square(x) + np.square(y))
    terms: NDArray[Any] = np.square(distance) * np.log(distance + np.float32(1e-6))
    return terms


def _affine_terms(points: NDArray[Any]) -> NDArray[Any]:
    """``(1, x, y)`` (..., 3)."""
    return np.concatenate([np.ones_like(points[..., :1]), points], axis=-1)


def _taps(positions: Map, length: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Indices into the bordered axis and weights, both (4, h, w), of the four pixels around every position."""
    # Clipped before it becomes an integer; beyond two pixels outside all four taps are black anyway.
    steps = np.rint(np.clip(positions, -4, length + 4) * np.float32(32)).astype(np.int64)
    first, fraction = steps >> 5, ((steps & 31) / 32).astype(np.float32)
    indices = np.stack([np.clip(first + offset, -1, length) + 1 for offset in (-1, 0, 1, 2)])
    return indices, np.stack([_cubic(np.abs(fraction - np.float32(offset))) for offset in (-1, 0, 1, 2)])


def _cubic(distance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Keys' cubic with a = -0.75 at distances in [0, 2]."""
    a = np.float32(-0.75)
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.where(distance <= 1, near, far).astype(np.float32)
