"""Errors a caller of the runtime may want to catch.

::

    SaishikiError
    ├── BundleError       a bundle that is damaged, unfinished, of another version, or failed its certificate
    ├── BackendError      a backend that is missing here, or an engine that cannot run here
    └── ImageError        a picture that cannot be used (also a ValueError)

``saishiki.models`` adds ``CheckpointError`` below the same root. Wrong arguments raise the built-in ``ValueError`` and
``TypeError``. Every message says what was given, what was expected and what to do next.
"""


class SaishikiError(Exception):
    """Root of every error that Saishiki raises on purpose."""


class BundleError(SaishikiError):
    """A bundle that is damaged, unfinished, written by a newer version, or failed its certificate."""


class BackendError(SaishikiError):
    """A backend that is not installed here, or an engine that cannot run on this device."""


class ImageError(SaishikiError, ValueError):
    """A picture that cannot be read or cannot be used as it is."""
