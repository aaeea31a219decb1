"""Batches of (target, sketch, reference) from the characters that render.mjs drew, with the augmentation of training.

Augmentation follows AnimeDiffusion (arXiv 2303.11137, section 3.3: the reference is warped by a thin-plate spline, the
sketch is XDoG lines), plus what multiplies a small data set: mirror images and permuted colour channels.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CORNERS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
XDOG_SIGMAS = (0.3, 0.4, 0.5)
XDOG_RADIUS = 7
CHANNEL_ORDERS = torch.tensor([(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])


@dataclass(frozen=True)
class Batch:
    """Images in [-1, 1]: target and reference (B, 3, H, W), sketch (B, 1, H, W) with white paper +1."""

    target: Tensor
    sketch: Tensor
    reference: Tensor

    @property
    def condition(self) -> Tensor:
        """(B, 4, H, W): sketch | reference, in the order the network expects."""
        return torch.cat([self.sketch, self.reference], dim=1)


def read_triples(path: Path) -> Tensor:
    """(N, 7, H, W) uint8 planes target RGB | sketch | reference RGB, from ``path``.bin and its ``path``.json header."""
    header = json.loads(path.with_suffix(".json").read_text())
    planes = np.fromfile(path.with_suffix(".bin"), np.uint8)
    return torch.from_numpy(planes.reshape(header["count"], header["planes"], header["size"], header["size"]))


def plain_batch(triples: Tensor) -> Batch:
    """The triples (B, 7, H, W) uint8 as they are: ink lines, no warp. This is what the held-out figures use."""
    images = triples.float() / 127.5 - 1.0
    return Batch(*images.split([3, 1, 3], dim=1))


def training_batch(triples: Tensor, rng: np.random.Generator, *, warped_share: float, xdog_share: float) -> Batch:
    """The triples (B, 7, H, W) uint8, mirrored and recoloured together, references warped, some sketches XDoG."""
    images = triples.float()
    count = len(images)
    mirrored = torch.from_numpy(rng.random(count) < 0.5)
    images[mirrored] = images[mirrored].flip(-1)
    permuted = rng.integers(len(CHANNEL_ORDERS), size=count) * (rng.random(count) < 0.5)
    orders = CHANNEL_ORDERS[torch.from_numpy(permuted)]
    rows = torch.arange(count)[:, None]
    target, sketch, reference = images[:, :3][rows, orders], images[:, 3:4], images[:, 4:][rows, orders]
    lines = torch.from_numpy(rng.random(count) < xdog_share)
    if lines.any():
        sketch[lines] = xdog_lines(target[lines], sigma=float(rng.choice(XDOG_SIGMAS)))
    warped = torch.from_numpy(rng.random(count) < warped_share)
    if warped.any():
        reference[warped] = warp(reference[warped], rng)
    return Batch(*(plane / 127.5 - 1.0 for plane in (target, sketch, reference)))


def warp(images: Tensor, rng: np.random.Generator) -> Tensor:
    """images (B, 3, H, W) in 0..255, each bent by a random thin-plate spline that moves two points of the diagonal."""
    count, _, height, width = images.shape
    points, shifts = rng.uniform(0.3, 0.7, (count, 2)), rng.uniform(-0.25, 0.25, (count, 2))
    diagonal = np.repeat((points + shifts)[..., None], 2, axis=2)
    corners = np.broadcast_to(np.array(CORNERS), (count, 4, 2))
    control = torch.tensor(np.concatenate([corners, diagonal], axis=1), dtype=torch.float32)
    displacement = torch.zeros_like(control)
    displacement[:, 4:] = -torch.tensor(shifts, dtype=torch.float32)[..., None]
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    grid = torch.stack([x, y], dim=-1).reshape(1, -1, 2).expand(count, -1, -1)
    source = grid + spline(control, displacement, grid)
    source = (2.0 * source - 1.0).reshape(count, height, width, 2)
    return F.grid_sample(images, source, mode="bicubic", align_corners=False).clamp(0.0, 255.0)


def spline(control: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """The thin-plate splines through ``values`` (B, K, 2) at ``control`` (B, K, 2), evaluated ``at`` (B, P, 2)."""
    count, knots, _ = control.shape
    affine = torch.cat([torch.ones(count, knots, 1), control], dim=2)
    system = torch.zeros(count, knots + 3, knots + 3)
    system[:, :knots, :knots] = radial(control, control) + 1e-4 * torch.eye(knots)  # two points may nearly coincide
    system[:, :knots, knots:] = affine
    system[:, knots:, :knots] = affine.transpose(1, 2)
    weights = torch.linalg.solve(system, F.pad(values, (0, 0, 0, 3)))
    basis = torch.cat([radial(at, control), torch.ones(*at.shape[:2], 1), at], dim=2)
    return basis @ weights


def radial(a: Tensor, b: Tensor) -> Tensor:
    """r^2 ln r between the points of a (B, P, 2) and b (B, K, 2): (B, P, K)."""
    r = torch.cdist(a, b)
    return r * r * torch.log(r + 1e-6)


def xdog_lines(rgb: Tensor, *, sigma: float) -> Tensor:
    """Black XDoG lines on white, (B, 1, H, W) of 0 and 255, from rgb (B, 3, H, W) in 0..255.

    Winnemoeller et al. 2012 with AnimeDiffusion's parameters: k 3.5, p 10, epsilon 0.01, a hard threshold.
    """
    grey = (rgb * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True).round() / 255.0
    response = (11.0 * blur(grey, sigma) - 10.0 * blur(grey, 3.5 * sigma)) * grey
    return (response >= 0.01).float() * 255.0


def blur(grey: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of grey (B, 1, H, W) with mirrored borders."""
    offsets = torch.arange(-XDOG_RADIUS, XDOG_RADIUS + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(grey, (XDOG_RADIUS,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.reshape(1, 1, 1, -1)), kernel.reshape(1, 1, -1, 1))
