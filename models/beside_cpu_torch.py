"""Importing open_clip and diffusers' networks beside a CPU build of torch: the one place that knows how.

Both import torchvision where it is installed, and open_clip requires it. Where its wheel was built against the CUDA
build of torch and torch is the CPU build, its compiled operators do not load, and it dies with ``operator
torchvision::nms does not exist`` while declaring how the shapes of two of them follow. Nothing here calls one of
them, so declaring the two names is all it takes. That is done once this very error has occurred and never
otherwise: a torchvision that fits keeps its own operators.
"""

import importlib
from functools import cache
from types import ModuleType

import torch

MISSING_OPERATOR = "operator torchvision::nms does not exist"
DECLARED = ("nms", "qnms")


def import_beside_cpu_torch(name: str) -> ModuleType:
    """The module of that name, imported on the first call.

    Raises ``ModuleNotFoundError`` that names the extra to install where it, or something that it needs, is absent.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"no module {error.name!r}, wanted for {name}: pip install 'saishiki[export]'", name=error.name
        ) from error
    except RuntimeError as error:
        if MISSING_OPERATOR not in str(error):
            raise
    declare_operators()
    return importlib.import_module(name)


@cache
def declare_operators() -> torch.library.Library:
    """Declares torchvision's operators by name, with nothing behind them; they live as long as what is returned."""
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in DECLARED:
        library.define(f"{name}(Tensor x) -> Tensor")  # type: ignore[no-untyped-call]
    return library
