"""The device layer: its logic on a played cuda-core, its truth on a GPU."""

import gc
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from saishiki.runtime.backends import cuda
from saishiki.runtime.backends.cubins import CubinIndex, read_cubin_index
from saishiki.runtime.backends.cuda import CudaDevice, driver_problem
from saishiki.runtime.backends.device import Memory, Table
from saishiki.runtime.backends.sampler_kernel import StepMemory, launch_step
from saishiki.runtime.errors import BackendError

TABLE = np.array(
    [[1, 1, 1.25, -0.75, -1, 1, 0, 0.9, 0.3, 0, 0, 0.2, 1], [1, 1, 2.0, -1.4, -1, 1, 0, 0.4, 0.6, 0, 0, 0.1, 1]],
    np.float32,
)


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
        properties = SimpleNamespace(multiprocessor_count=128)

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

    kernel = SimpleNamespace(handle=77)
    return SimpleNamespace(
        Device=Device,
        LaunchConfig=lambda **config: config,
        ObjectCode=SimpleNamespace(
            from_cubin=lambda content, name: SimpleNamespace(get_kernel=lambda entry: log.append(entry) or kernel)
        ),
        launch=lambda stream, config, kernel, *arguments: log.append(f"{config} {arguments}"),
    )


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
    assert device.multiprocessors == 128


class MemoryDriver:
    """A libcuda that tells how much memory is left, or fails."""

    def __init__(self, error: int) -> None:
        self.error = error

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:  # noqa: N802
        free._obj.value, total._obj.value = 3 * 2**32, 2**40
        return self.error


def test_free_bytes(device: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: MemoryDriver(0))
    assert device.free_bytes() == 3 * 2**32
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: MemoryDriver(201))
    with pytest.raises(BackendError, match=r"GPU 0 does not tell its free memory .cuMemGetInfo returns error 201"):
        device.free_bytes()


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


def driver_answering(error: int, log: list[str]) -> Any:
    """What ``cuda.bindings.driver`` is to a launch."""

    def set_attribute(attribute: str, value: int, kernel: int, ordinal: int) -> tuple[int]:
        log.append(f"{attribute} = {value} for {kernel} on {ordinal}")
        return (error,)

    return SimpleNamespace(
        CUfunction_attribute=SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared"),
        CUresult=SimpleNamespace(CUDA_SUCCESS=0),
        cuKernelSetAttribute=set_attribute,
    )


def play_cubin(monkeypatch: pytest.MonkeyPatch, shared_bytes: int) -> None:
    """An index with one kernel, for the device of :func:`fake_core`; its file is that of another."""
    real = read_cubin_index().cubins[0]
    entry = replace(
        real,
        name="scale",
        target="sm89",
        arch="sm_89",
        entry="_scale_kernel",
        args=(("x_ptr", "*fp32"), ("n", "i64"), ("heads", "i32"), ("scratch", "null")),
        aligned=("x_ptr",),
        grid=((("n",), 64), (("heads",), 1)),
        threads=128,
        shared_bytes=shared_bytes,
    )
    monkeypatch.setattr(cuda, "read_cubin_index", lambda: CubinIndex("", {}, (entry,)))


def test_launch_derives_the_grid(monkeypatch: pytest.MonkeyPatch, device: CudaDevice, log: list[str]) -> None:
    play_cubin(monkeypatch, shared_bytes=49152)
    for _ in range(2):
        device.launch("scale", x_ptr=256, n=65, heads=3)
    config = "{'grid': (2, 3), 'block': 128, 'shmem_size': 49152} (256, np.int64(65), np.int32(3), 0)"
    assert log[1:] == ["_scale_kernel", config, config]


def test_launch_allows_a_kernel_its_shared_memory(
    monkeypatch: pytest.MonkeyPatch, device: CudaDevice, log: list[str]
) -> None:
    play_cubin(monkeypatch, shared_bytes=49153)
    monkeypatch.setattr("importlib.import_module", lambda name: driver_answering(0, log))
    for _ in range(2):
        device.launch("scale", x_ptr=256, n=65, heads=3)
    assert log[2] == "shared = 49153 for 77 on 0"
    assert len(log) == 5


def test_launch_reports_too_little_shared_memory(
    monkeypatch: pytest.MonkeyPatch, device: CudaDevice, log: list[str]
) -> None:
    play_cubin(monkeypatch, shared_bytes=10**6)
    monkeypatch.setattr("importlib.import_module", lambda name: driver_answering(1, log))
    with pytest.raises(BackendError, match="GPU 0 gives a kernel no 1000000 bytes of shared memory"):
        device.launch("scale", x_ptr=256, n=65, heads=3)


USED = {
    "Buffer": ["copy_from", "from_handle", "handle"],
    "Device": ["allocate", "compute_capability", "create_stream", "name", "properties", "set_current"],
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
    x, prediction, noise = np.random.default_rng(0).standard_normal((3, 4096), dtype=np.float32)
    table = TABLE if with_noise else np.where(np.arange(TABLE.shape[1]) == 11, np.float32(0), TABLE)
    memory = {"x": x, "prediction": prediction, "table": table, "noise": noise}
    at = {name: device.allocate(array.nbytes) for name, array in memory.items()}
    for name, array in memory.items():
        device.upload(at[name], array)
    drawn = {"noise": Table(at["noise"], row_bytes=0), "noises": 2} if with_noise else {}
    step = StepMemory(at["x"], at["prediction"], at["table"], x.size, **drawn)  # type: ignore[arg-type]

    def launch() -> None:
        launch_step(device, step, 1)

    # The first launch loads the kernel, which must not fall into a recording; x is put back afterwards.
    launch()
    device.upload(at["x"], x)
    device.synchronize()
    (device.capture(launch) if captured else launch)()
    before = device.mark()
    out = np.empty_like(x)
    device.download(at["x"], out)
    expected = fakes.step_in_numpy(x, prediction, table[1], noise if with_noise else None)
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
