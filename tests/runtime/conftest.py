"""The tiny bundle on ONNX Runtime, and copies of it to damage."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from saishiki.runtime import Bundle, Colorizer
from saishiki.runtime.backends.onnxruntime import OnnxRuntimeBackend
from tests.bundles import copy_bundle


@pytest.fixture(scope="session")
def backend() -> OnnxRuntimeBackend:
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install 'saishiki[cpu]'")
    return OnnxRuntimeBackend(device=None, threads=1)


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="session")
def colorizer(tiny_bundle: Path) -> Iterator[Colorizer]:
    with Colorizer.load(tiny_bundle, backend="onnxruntime") as loaded:
        yield loaded


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that the test may change."""
    return copy_bundle(tiny_bundle, tmp_path)
