"""Extended difference of Gaussians: the line extractor that AnimeDiffusion trains and draws with.

``grey * ((1 + p) G_sigma - p G_{k sigma})``, then a threshold so steep that the result is black lines on white.
Source: Winnemoeller et al. 2012 in the form of xq-meng/AnimeDiffusion 1582eb0 (its product with the grey image is its
own); grey and blur as in OpenCV 4, which it calls.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from saishiki.runtime.errors import ImageError


def extract_lines(
    rgb: NDArray[np.uint8],
    *,
    sigma: float = 0.4,
    k: float = 3.5,
    p: float = 10.0,
    epsilon: float = 0.01,
    phi: float = 1e9,
) -> NDArray[np.uint8]:
    """The XDoG line drawing (H, W) uint8 of a picture: 0 for lines and solid blacks, 255 for paper.

    rgb: (H, W, 3) uint8 of any size. sigma: blur in px. The published code draws sigma from {0.3, 0.4, 0.5} anew at
    every call, also at inference; here it is fixed, so that one picture gives one drawing. p is 10 as in the code (the
    paper says 9).

    Raises ``ImageError`` for other pixels and ``ValueError`` where sigma or k is not positive.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ImageError(f"expected uint8 (H, W, 3), got {rgb.dtype} {rgb.shape}")
    if not (sigma > 0 and k > 0):
        raise ValueError(f"sigma and k must be positive, got {sigma} and {k}")
    grey = _grey_from_rgb(rgb) / 255.0
    response: NDArray[np.float64] = grey * ((1 + p) * _blur(grey, sigma) - p * _blur(grey, k * sigma))
    lines = np.where(response >= epsilon, 1.0, 1 + np.tanh(phi * (response - epsilon)))
    levels: NDArray[np.uint8] = np.rint(255 * lines).astype(np.uint8)
    return levels


def _grey_from_rgb(rgb: NDArray[np.uint8]) -> NDArray[Any]:
    """OpenCV's 14-bit luma, which differs from Pillow's 16-bit one by up to a level."""
    red, green, blue = (rgb[..., channel].astype(np.int32) for channel in range(3))
    luma: NDArray[Any] = (4899 * red + 9617 * green + 1868 * blue + 8192) >> 14
    return luma


def _blur(image: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Separable Gaussian blur of (H, W) with the border reflected about the outermost pixel (reflect-101)."""
    kernel = _gaussian_kernel(sigma)
    return _convolve_rows(_convolve_rows(image, kernel).T, kernel).T


def _gaussian_kernel(sigma: float) -> NDArray[np.float64]:
    """Normalized samples of a Gaussian at OpenCV's size for float images, the odd number from round(8 sigma + 1)."""
    radius = round(8 * sigma + 1) // 2
    kernel: NDArray[np.float64] = np.exp(-np.square(np.arange(-radius, radius + 1)) / (2 * sigma**2))
    kernel /= kernel.sum()
    return kernel


def _convolve_rows(image: NDArray[np.float64], kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    width, radius = image.shape[1], len(kernel) // 2
    # np.pad reflects as often as needed where the image is narrower than the kernel.
    padded = np.pad(image, ((0, 0), (radius, radius)), mode="reflect")
    blurred: NDArray[np.float64] = kernel[radius] * image
    for tap in range(radius):
        mirrored = padded[:, 2 * radius - tap : 2 * radius - tap + width]
        blurred += kernel[tap] * (padded[:, tap : tap + width] + mirrored)
    return blurred
