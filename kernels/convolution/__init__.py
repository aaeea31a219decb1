"""Convolution with what lies around it: norm and SiLU in front, residual and bias behind; from and to images."""

from saishiki.kernels.convolution.op import convolution, convolution_from_images, convolution_to_image
from saishiki.kernels.convolution.reference import (
    InputNorm,
    convolution_from_images_reference,
    convolution_reference,
    convolution_to_image_reference,
)
from saishiki.kernels.convolution.variants import VARIANTS

__all__ = [
    "VARIANTS",
    "InputNorm",
    "convolution",
    "convolution_from_images",
    "convolution_from_images_reference",
    "convolution_reference",
    "convolution_to_image",
    "convolution_to_image_reference",
]
