"""The device layer: its logic on a played cuda-core, its truth on a GPU."""

import gc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from saishiki.runtime.backends import cuda
from saishiki.runtime.backends.cuda import CudaDevice, driver_problem
from saishiki.runtime.backends.device import Memory
from saishiki.runtime.errors import BackendError

ROW = np.array([[0.8, 0.6, 0.9, 0.3, 0.2], [0.5, 0.7, 0.4, 0.6, 0.1]], np.float32)


class FakeBuilder:
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def begin_building(self, mode: str) -> "FakeBuilder":
        self.log.append(f"begin {mode}")
        return self

    def end_building(self) -> "FakeBuilder":
        self.log.append("end")
        return self

    def complete(self) -> Any:
        return SimpleNamespace(launch=lambda stream: self.log.append("launch"))

    def close(self) -> None:
        self.log.append("close")
        if "end" not in self.log:
            raise RuntimeError("the capture is broken")


def fake_core(log: list[str]) -> Any:
    stream = SimpleNamespace(
        handle=5, sync=lambda: None, create_graph_builder=lambda: FakeBuilder(log), close=lambda: None
    )

    class Device:
        compute_capability = (8, 9)
        name = "played"

        def __init__(self, ordinal: int) -> None:
            pass

        def set_current(self) -> None:
            log.append("current")

        def create_stream(self) -> Any:
            return stream

        def allocate(self, nbytes: int, *, stream: Any) -> Any:
            if nbytes > 1000:
                raise RuntimeError("CUDA_ERROR_OUT_OF_MEMORY")
            return SimpleNamespace(handle=4096)

    return SimpleNamespace(Device=Device)


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, log: list[str]) -> CudaDevice:
    monkeypatch.setattr(cuda, "import_cuda_core", lambda: fake_core(log))
    monkeypatch.setattr(cuda, "device_count", lambda: 1)
    return CudaDevice(0)


def test_device_states_itself(device: CudaDevice) -> None:
    assert (device.target, device.stream, device.name) == ("sm89", 5, "played")


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("ordinal", [-1, 1])
def test_device_of_a_wrong_number(ordinal: int) -> None:
    with pytest.raises(BackendError, match=f"no GPU {ordinal}: this machine has 1, numbered from 0"):
        CudaDevice(ordinal)


def test_allocate_reports_too_little_memory(device: CudaDevice) -> None:
    assert device.allocate(1000).nbytes == 1000
    with pytest.raises(BackendError, match="GPU 0 has no room for 1001 more bytes: CUDA_ERROR_OUT_OF_MEMORY"):
        device.allocate(1001)


def test_upload_refuses_what_does_not_fit(device: CudaDevice) -> None:
    with pytest.raises(ValueError, match="an array of 16 bytes does not fit into 8"):
        device.upload(Memory(4096, 8, None), np.zeros(4, np.float32))


def test_download_refuses_a_view(device: CudaDevice) -> None:
    with pytest.raises(ValueError, match="expected a contiguous array"):
        device.download(Memory(4096, 64, None), np.zeros((4, 4), np.float32)[:, ::2])


def test_capture_is_thread_local_and_without_garbage_collection(device: CudaDevice, log: list[str]) -> None:
    collecting = []
    replay = device.capture(lambda: collecting.append(gc.isenabled()))
    assert collecting == [False]
    assert gc.isenabled()
    replay()
    assert log[1:] == ["begin thread_local", "end", "close", "launch"]


def test_capture_reports_the_first_error(device: CudaDevice, log: list[str]) -> None:
    def fail() -> None:
        raise BackendError("TensorRT refuses the execution")

    with pytest.raises(BackendError, match="TensorRT refuses the execution"):
        device.capture(fail)
    assert log[1:] == ["begin thread_local", "close"]
    assert gc.isenabled()
    assert not cuda._CAPTURING.locked()


USED = {
    "Buffer": ["copy_from", "from_handle", "handle"],
    "Device": ["allocate", "compute_capability", "create_stream", "name", "set_current"],
    "Event": ["__sub__", "sync"],
    "EventOptions": [],
    "LaunchConfig": [],
    "ObjectCode": ["from_cubin", "get_kernel"],
    "Stream": ["close", "create_graph_builder", "handle", "record", "sync"],
}


def test_cuda_core_has_every_name_used() -> None:
    """Importing cuda-core needs no driver; nothing here calls into it."""
    core = pytest.importorskip("cuda.core", reason=f"needs cuda-core: {cuda.INSTALL}", exc_type=ImportError)
    graph = pytest.importorskip("cuda.core.graph")
    missing = [
        f"{owner}.{name}" for owner, names in USED.items() for name in names if not hasattr(getattr(core, owner), name)
    ]
    missing += [
        name
        for name in ("begin_building", "close", "complete", "end_building")
        if not hasattr(graph.GraphBuilder, name)
    ]
    assert not missing
    assert hasattr(graph.Graph, "launch")
    assert callable(core.launch)


class Driver:
    """A libcuda that answers with one error code."""

    def __init__(self, error: int) -> None:
        self.error = error

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.error


def missing(name: str) -> Any:
    raise OSError(f"{name}: cannot open shared object file")


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (missing, "no NVIDIA driver (libcuda.so.1) found"),
        (lambda name: Driver(100), "the NVIDIA driver finds no GPU"),
        (lambda name: Driver(999), "the NVIDIA driver does not start (cuInit returns error 999)"),
        (lambda name: Driver(0), None),
    ],
    ids=["no driver", "no GPU", "broken", "fine"],
)
def test_driver_problem(monkeypatch: pytest.MonkeyPatch, load: Any, message: str | None) -> None:
    monkeypatch.setattr("ctypes.CDLL", load)
    assert driver_problem.__wrapped__() == message


@pytest.mark.parametrize("core", [None, SimpleNamespace(__version__="0.5.1")], ids=["absent", "too old"])
def test_import_cuda_core_says_what_to_install(monkeypatch: pytest.MonkeyPatch, core: Any) -> None:
    def load(name: str) -> Any:
        if core is None:
            raise ImportError("cannot import name 'bindings' from 'cuda'")
        return core

    monkeypatch.setattr(cuda, "driver_problem", lambda: None)
    monkeypatch.setattr("importlib.import_module", load)
    with pytest.raises(BackendError, match=r"run: pip install 'cuda-core>=1\.0' 'cuda-bindings>=13,<14'"):
        cuda.import_cuda_core()


def test_import_cuda_core_asks_for_a_driver_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "driver_problem", lambda: "no NVIDIA driver (libcuda.so.1) found")
    with pytest.raises(BackendError, match="no NVIDIA driver"):
        cuda.import_cuda_core()


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
@pytest.mark.parametrize("captured", [False, True], ids=["stream", "graph"])
@pytest.mark.parametrize("with_noise", [False, True], ids=["deterministic", "noise"])
def test_cubin_on_the_gpu(fakes: Any, with_noise: bool, captured: bool) -> None:
    device = CudaDevice(0)
    rng = np.random.default_rng(0)
    x, eps, noise = rng.standard_normal((3, 4096), dtype=np.float32)
    memory = {"x": x, "eps": eps, "noise": noise, "out": np.full_like(x, np.nan), "coefficients": ROW}
    at = {name: device.allocate(array.nbytes) for name, array in memory.items()}
    for name, array in memory.items():
        device.upload(at[name], array)
    pointers = {f"{name}_ptr": held.address for name, held in at.items()}
    if not with_noise:
        pointers["noise_ptr"] = 0
    kernel = "ddim_step_noise" if with_noise else "ddim_step"

    def launch() -> None:
        device.launch(kernel, x.size, **pointers, k=1, n=x.size)

    launch()
    device.synchronize()
    (device.capture(launch) if captured else launch)()
    before = device.mark()
    out = np.empty_like(x)
    device.download(at["out"], out)
    expected = fakes.step_in_numpy(x, eps, ROW[1], noise if with_noise else None)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    after = device.mark()
    after.wait()
    assert after.ms_since(before) >= 0
    device.close()


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
def test_upload_and_download_on_the_gpu() -> None:
    device = CudaDevice(0)
    array = np.random.default_rng(0).standard_normal((5, 1000), dtype=np.float32)
    memory = device.allocate(array.nbytes)
    device.upload(memory, array.T)
    back = np.empty_like(array.T, order="C")
    device.download(memory, back)
    np.testing.assert_array_equal(back, array.T)
    device.close()
