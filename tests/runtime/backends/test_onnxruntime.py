import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from saishiki.runtime import BackendError, Bundle, BundleError
from saishiki.runtime.backends.onnxruntime import OnnxRuntimeBackend, why_unavailable
from tests.bundles import rewrite_file


def inputs(batch=1, side=32, *, columns=None, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"noisy": (batch, 3, side, columns or side), "condition": (batch, 4, side, columns or side)}
    arrays = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    return arrays | {"time": rng.standard_normal((batch, 448), dtype=np.float32)}


@pytest.fixture(scope="module")
def denoiser(bundle, backend):
    return backend.load(bundle, "denoiser", "fp32")


def fake_runtime(**changes):
    """A module like onnxruntime, whose sessions work with the providers they should."""

    class Session:
        def __init__(self, path, options, providers):
            self.providers = [item if isinstance(item, str) else item[0] for item in providers]

        def get_providers(self):
            return self.providers

    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    members = {"InferenceSession": Session, "SessionOptions": SimpleNamespace, "__version__": "9.9"}
    return SimpleNamespace(**members | {"get_available_providers": lambda: available} | changes)


def test_outputs_are_named_and_shaped_as_declared(denoiser, bundle):
    assert denoiser.signature == bundle.manifest.modules["denoiser"].signature
    outputs = denoiser(**inputs(batch=2))
    assert list(outputs) == ["eps"]
    assert (outputs["eps"].shape, outputs["eps"].dtype) == ((2, 3, 32, 32), np.float32)


def test_an_image_does_not_depend_on_its_batch(denoiser):
    both = inputs(batch=2)
    alone = denoiser(**{name: array[1:] for name, array in both.items()})["eps"]
    np.testing.assert_allclose(denoiser(**both)["eps"][1:], alone, atol=1e-5)


def test_any_size_that_the_signature_allows(denoiser):
    assert denoiser(**inputs(batch=3, side=18, columns=50))["eps"].shape == (3, 3, 18, 50)


def test_inputs_that_do_not_fit(denoiser):
    with pytest.raises(ValueError, match="height must be a positive multiple of 2, got 31"):
        denoiser(**inputs(side=31))
    with pytest.raises(ValueError, match=r"expected noisy: float32 .*, got float64"):
        denoiser(**inputs() | {"noisy": np.zeros((1, 3, 32, 32))})
    with pytest.raises(ValueError, match="expected the inputs"):
        denoiser(noisy=np.zeros((1, 3, 32, 32), np.float32))


def test_fp16_is_close_to_fp32(denoiser, bundle, backend):
    half = backend.load(bundle, "denoiser", "fp16")(**inputs())["eps"]
    full = denoiser(**inputs())["eps"]
    assert half.dtype == np.float32
    assert 1e-6 < np.linalg.norm(half - full) / np.linalg.norm(full) < 5e-3


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_lean_sessions_compute_the_same(bundle, backend, precision):
    lean = OnnxRuntimeBackend(device=None, lean=True).load(bundle, "denoiser", precision)(**inputs())["eps"]
    plain = backend.load(bundle, "denoiser", precision)(**inputs())["eps"]
    assert np.linalg.norm(lean - plain) / np.linalg.norm(plain) < (1e-5 if precision == "fp32" else 2e-3)


def test_precision_that_the_bundle_lacks(bundle, backend):
    for ask in (backend.check, backend.load):
        with pytest.raises(BackendError, match="time_projection has no graph in fp16, only in fp32"):
            ask(bundle, "time_projection", "fp16")
    assert backend.check(bundle, "time_projection", "fp32").graph.path == "onnx/time_projection.fp32.onnx"


def test_a_failure_inside_onnxruntime(denoiser):
    class Broken:
        def run(self, names, arrays):
            raise RuntimeError("out of memory")

    with pytest.raises(BackendError, match=r"ONNX Runtime failed on noisy: float32 \(batch, .*: out of memory"):
        replace(denoiser, session=Broken())(**inputs())


def test_weights_that_are_too_short(bundle_copy, backend):
    rewrite_file(bundle_copy, "onnx/denoiser.fp32.onnx.data", lambda content: content[:1000])
    with pytest.raises(BundleError, match=r"denoiser.fp32.onnx: ONNX Runtime [\d.]+ cannot load it"):
        backend.load(Bundle.open(bundle_copy), "denoiser", "fp32")


def test_why_unavailable_without_onnxruntime(monkeypatch):
    assert why_unavailable(cuda=False) is None
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "ONNX Runtime is not installed" in why_unavailable(cuda=False)
    with pytest.raises(BackendError, match=r"install it with: pip install 'saishiki\[cpu\]' \(or 'saishiki\[gpu\]'"):
        OnnxRuntimeBackend(device=None)


def test_cuda_without_its_provider(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_runtime(get_available_providers=lambda: ["CPU"]))
    with pytest.raises(
        BackendError, match=r"onnxruntime 9.9 has no CUDA provider here; install it with: .*saishiki\[gpu\]"
    ):
        OnnxRuntimeBackend(device=0)
    assert "no CUDA provider" in why_unavailable(cuda=True)


def test_cuda_takes_the_device_and_fp16(monkeypatch, bundle):
    made = []

    class Session(fake_runtime().InferenceSession):
        def __init__(self, path, options, providers):
            made.append((path, options, providers))
            super().__init__(path, options, providers)

    monkeypatch.setitem(sys.modules, "onnxruntime", fake_runtime(InferenceSession=Session))
    backend = OnnxRuntimeBackend(device=2, threads=3)
    assert backend.default_precision == "fp16"
    backend.load(bundle, "denoiser", "fp16")
    ((path, options, providers),) = made
    assert path == str(bundle.path / "onnx/denoiser.fp16.onnx")
    assert options.intra_op_num_threads == 3
    assert (providers[0][0], providers[0][1]["device_id"]) == ("CUDAExecutionProvider", 2)


def test_cuda_that_does_not_load_is_no_silent_fallback(monkeypatch, bundle):
    class Session(fake_runtime().InferenceSession):
        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setitem(sys.modules, "onnxruntime", fake_runtime(InferenceSession=Session))
    with pytest.raises(BackendError, match="cannot use its CUDAExecutionProvider here, only CPUExecutionProvider"):
        OnnxRuntimeBackend(device=0).load(bundle, "denoiser", "fp16")
