import sys
from types import SimpleNamespace

import pytest

from saishiki.export.engines import Builder, Target, installed_builder, parse_targets
from saishiki.export.engines import target as target_module
from saishiki.runtime.errors import BackendError


def rtx(*sms: int) -> tuple[Target, ...]:
    return tuple(Target("tensorrt-rtx", f"sm{sm}") for sm in sms)


@pytest.mark.parametrize(
    ("targets", "sms", "expected"),
    [
        ("onnx", (), ()),
        ("", (), ()),
        ("onnx,rtx", (), rtx(89)),
        ("onnx,rtx", (86, 89), rtx(86, 89)),
        ("onnx, rtx:sm86", (), rtx(86)),
        (("rtx:sm120", "rtx:89"), (), rtx(120, 89)),
        (("rtx",), (75, 80, 86, 89, 120, 121), rtx(75, 80, 86, 89, 120, 121)),
        ("rtx,rtx:sm89", (89, 89), rtx(89)),
    ],
    ids=["onnx", "none", "default", "sms", "one", "sequence", "all", "duplicates"],
)
def test_parse_targets(targets: str | tuple[str, ...], sms: tuple[int, ...], expected: tuple[Target, ...]) -> None:
    assert parse_targets(targets, sms) == expected


@pytest.mark.parametrize(
    ("targets", "sms", "message"),
    [
        ("rtx", (90,), r"builds for sm75, sm80, sm86, sm89, sm120, sm121; not for sm90 \(H100, H200\): .* tensorrt"),
        ("rtx:sm90", (), r"not for sm90 \(H100, H200\)"),
        ("rtx", (87,), r"sm121; not for sm87"),
        ("rtx:ada", (), r"sm121; not for smada"),
        ("vulkan", (), r"no target 'vulkan'; expected onnx, rtx, rtx:sm89, tensorrt or cuda"),
        ("rtx:", (), r"no target 'rtx:'"),
        ("tensorrt:sm80", (), r"no target 'tensorrt:sm80'"),
        ("onnx", (89,), r"--sm 89 concerns the target rtx, but the targets are onnx; add rtx"),
    ],
)
def test_parse_targets_refuses(targets: str, sms: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_targets(targets, sms)


def test_parse_targets_says_how_to_get_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"on the machine with the GPU .*pip install 'saishiki\[tensorrt\]'"):
        parse_targets("tensorrt")


def test_parse_targets_says_that_tensorrt_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__name__="tensorrt", __version__="11.4.0"))
    monkeypatch.setattr(target_module.ctypes, "CDLL", no_driver)
    with pytest.raises(BackendError, match=r"needs the GPU that will run it, and finds none here: libcuda\.so\.1"):
        parse_targets("tensorrt")


def test_parse_targets_builds_tensorrt_for_the_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(compute_capability=(9, 0))
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__name__="tensorrt", __version__="11.4.0"))
    monkeypatch.setitem(sys.modules, "cuda.core", SimpleNamespace(Device=lambda number: device))
    monkeypatch.setattr(target_module.ctypes, "CDLL", lambda name: None)
    (target,) = parse_targets("onnx,tensorrt")
    assert (target, str(target)) == (Target("tensorrt", "sm90"), "tensorrt sm90")
    assert installed_builder(target) == Builder("tensorrt", "11.4.0")


def test_installed_builder_is_the_installed_version() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'saishiki[rtx]'")
    assert installed_builder(*rtx(89)) == Builder("tensorrt_rtx", trt.__version__)


def test_installed_builder_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendError, match=r"engines for tensorrt-rtx need a package .*pip install 'saishiki\[rtx\]'"):
        installed_builder(*rtx(89))
