import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from saishiki.runtime import BackendError
from saishiki.runtime.backends import BACKENDS, open_backend, select, why_unavailable
from saishiki.runtime.backends.select import device_index


class FakeTensorRT:
    """A TensorRT that opens here unless a test says why not, and runs every engine unless a test says why not."""

    default_precision = "fp16"

    def __init__(self):
        self.reasons, self.misfits, self.opened, self.checked, self.closed = {}, {}, [], [], []

    def open_tensorrt(self, name, device):
        if name in self.reasons:
            raise BackendError(self.reasons[name])
        self.opened.append((name, device))
        return self

    def check(self, bundle, module, precision):
        self.checked.append((module, precision))
        if self.opened[-1][0] in self.misfits:
            raise BackendError(self.misfits[self.opened[-1][0]])

    def close(self):
        self.closed.append(self.opened[-1][0])


@pytest.fixture
def tensorrt(monkeypatch):
    fake = FakeTensorRT()
    monkeypatch.setattr(select, "_tensorrt", lambda: fake)
    return fake


def with_engines(bundle, *backends):
    denoiser = bundle.manifest.modules["denoiser"]
    engines = tuple(SimpleNamespace(backend=name) for name in backends)
    modules = bundle.manifest.modules | {"denoiser": replace(denoiser, engines=engines)}
    return replace(bundle, manifest=replace(bundle.manifest, modules=modules))


@pytest.mark.parametrize(
    ("device", "index"), [(None, None), ("cpu", None), ("cuda", 0), ("cuda:0", 0), ("cuda:3", 3), ("cuda:12", 12)]
)
def test_device_index(device, index):
    assert device_index(device) == index


@pytest.mark.parametrize("device", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1.0", "CUDA", "cuda:\u00b2", 0])
def test_device_index_of_an_unknown_device(device):
    with pytest.raises(ValueError, match=r"unknown device .*; expected cpu, cuda or cuda:N"):
        device_index(device)


def test_auto_without_engines_is_onnxruntime(bundle, tensorrt):
    backend = open_backend(bundle)
    assert (backend.name, backend.default_precision) == ("onnxruntime", "fp32")
    assert tensorrt.opened == []


@pytest.mark.parametrize(
    ("engines", "broken", "device", "chosen"),
    [
        (["tensorrt-rtx"], [], None, ("tensorrt-rtx", 0)),
        (["tensorrt"], [], "cuda:2", ("tensorrt", 2)),
        (["tensorrt", "tensorrt-rtx"], [], None, ("tensorrt-rtx", 0)),
        (["tensorrt", "tensorrt-rtx"], ["tensorrt-rtx"], None, ("tensorrt", 0)),
    ],
)
def test_auto_takes_the_fastest_with_engines(bundle, tensorrt, engines, broken, device, chosen):
    tensorrt.reasons |= dict.fromkeys(broken, "no driver")
    open_backend(with_engines(bundle, *engines), device=device)
    assert tensorrt.opened == [chosen]


def test_auto_checks_every_module_in_the_precision_it_would_be_loaded_in(bundle, tensorrt):
    assert open_backend(with_engines(bundle, "tensorrt-rtx")) is tensorrt
    assert tensorrt.checked == [("time_projection", "fp32"), ("denoiser", "fp16")]
    assert tensorrt.closed == []


def test_auto_passes_over_engines_that_cannot_run_here(bundle, tensorrt):
    tensorrt.misfits["tensorrt-rtx"] = "its target is sm120, this GPU is sm89"
    open_backend(with_engines(bundle, "tensorrt-rtx", "tensorrt"))
    assert tensorrt.opened == [("tensorrt-rtx", 0), ("tensorrt", 0)]
    assert tensorrt.closed == ["tensorrt-rtx"]


@pytest.mark.parametrize(("broken", "device"), [(["tensorrt-rtx"], None), ([], "cpu")])
def test_auto_falls_to_onnxruntime(bundle, tensorrt, broken, device):
    tensorrt.reasons |= dict.fromkeys(broken, "no driver")
    assert open_backend(with_engines(bundle, "tensorrt-rtx"), device=device).name == "onnxruntime"


def test_auto_where_nothing_works(bundle, tensorrt, monkeypatch):
    tensorrt.reasons["tensorrt-rtx"] = "no driver"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError) as caught:
        open_backend(with_engines(bundle, "tensorrt-rtx"))
    assert str(caught.value).startswith(
        "no backend can run this bundle here; tensorrt-rtx: no driver; tensorrt: the bundle has no such engines; "
        "onnxruntime: ONNX Runtime is not installed"
    )


def test_by_name(bundle, tensorrt):
    assert open_backend(bundle, "onnxruntime").name == "onnxruntime"
    open_backend(bundle, "tensorrt", "cuda:1")
    assert tensorrt.opened == [("tensorrt", 1)]


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("ort", None, "unknown backend 'ort'; expected auto or one of tensorrt-rtx, tensorrt, onnxruntime"),
        ("tensorrt", "cpu", "tensorrt needs a GPU; use device cuda, or the backend onnxruntime"),
        ("onnxruntime", "gpu", "unknown device 'gpu'; expected cpu, cuda or cuda:N"),
    ],
)
def test_wrong_names(bundle, name, device, message):
    with pytest.raises(ValueError, match=message):
        open_backend(bundle, name, device)


def test_why_unavailable_answers_for_every_backend():
    reasons = {name: why_unavailable(name) for name in BACKENDS}
    assert reasons["onnxruntime"] is None
    assert all(reason is None or len(reason) > 10 for reason in reasons.values())
