"""Runs bundles without PyTorch: ``Colorizer.load(bundle)(sketch, reference)``."""

from saishiki.runtime.bundle import Bundle
from saishiki.runtime.colorizer import Colorizer
from saishiki.runtime.errors import BackendError, BundleError, ImageError, SaishikiError
from saishiki.runtime.noise import Noise

__all__ = ["BackendError", "Bundle", "BundleError", "Colorizer", "ImageError", "Noise", "SaishikiError"]
