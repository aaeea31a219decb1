"""cuDNN's graph API through ``cudnn-frontend``: why it is not there, and the properties of GPUs that are not there.

A plan can be made without a GPU when cuDNN is told the properties of one; the window compares those that the runtime
has written down with what the device says.
"""

import ctypes
import glob
import importlib
import importlib.util
import json
import os
from collections.abc import Mapping
from typing import Any

from saishiki.runtime.backends.cudnn import GPUS, properties_of

INSTALL = "pip install 'nvidia-cudnn-frontend<1.28'"
LIBRARIES = (
    "cu13/lib/libnvrtc.so.*",  # engines that cuDNN compiles at run time
    "cu13/lib/libcublasLt.so.*",
    "cudnn/lib/libcudnn_graph.so.9",
    "cudnn/lib/libcudnn.so.9",
)

PROPERTIES = GPUS
"""Of GPUs by compute capability, 90 being 9.0."""


def why_no_cudnn() -> str | None:
    """Why cuDNN's graph API cannot be used here; None where it can be imported."""
    if importlib.util.find_spec("cudnn") is None:
        return f"cudnn-frontend is not installed; run: {INSTALL}"
    try:
        import_cudnn()
    except (ImportError, OSError, RuntimeError) as error:
        return f"cudnn-frontend does not load: {error}"
    return None


def import_cudnn() -> Any:
    """The module ``cudnn``, with the libraries it needs loaded from the ``nvidia`` wheels where they are."""
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec else []:
        for pattern in LIBRARIES:
            for path in glob.glob(os.path.join(root, pattern)):
                ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
    return importlib.import_module("cudnn")


def written_properties(cudnn: Any, sm: int) -> Any:
    """Properties of a GPU that is not at hand; raises ``ValueError`` for one that is not in the table."""
    if sm not in PROPERTIES:
        raise ValueError(f"no properties are written down for sm{sm}; expected one of {sorted(PROPERTIES)}")
    return cudnn.create_device_properties(properties_of(sm))


def property_values(sm: int) -> dict[str, Any]:
    """As JSON has them."""
    values: dict[str, Any] = json.loads(properties_of(sm))
    return values


def compare_properties(own: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """Where the device says something else than what is written down, and what each says."""
    names = sorted(own.keys() | written.keys())
    return {
        name: {"device": own.get(name), "written": written.get(name)}
        for name in names
        if own.get(name) != written.get(name)
    }
