"""The TensorRT backend on a library and a GPU that are played in numpy; both libraries take the same path."""

import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from saishiki.runtime.backends import tensorrt
from saishiki.runtime.backends.host_loop import run_loop_on_host
from saishiki.runtime.backends.protocol import TimesItself, TimesLoops, no_progress
from saishiki.runtime.backends.tensorrt import MAX_EXECUTIONS, TensorRTBackend, TensorRTModule, why_unavailable
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BackendError
from saishiki.runtime.samplers import COLUMNS
from saishiki.runtime.signature import Array

VERSION = "1.7.1.116"
BACKENDS = ["tensorrt-rtx", "tensorrt"]


class Severity(Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class Logger:
    Severity = Severity


class FakeCache:
    def __init__(self) -> None:
        self.content = b"new"

    def deserialize(self, blob: bytes) -> bool:
        if blob == b"broken":
            raise RuntimeError("cannot parse")
        self.content = blob
        return blob != b"foreign"

    def serialize(self) -> bytes:
        return self.content + b"+"


class FakeConfig:
    def __init__(self) -> None:
        self.strategy: Any = None
        self.cache: Any = None
        self.dynamic_shapes_kernel_specialization_strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> FakeCache:
        return FakeCache()

    def set_runtime_cache(self, cache: FakeCache) -> None:
        self.cache = cache


class FakeContext:
    """Computes what :class:`KernelModule` does, from addresses, once everything was set that TensorRT asks for."""

    def __init__(self, engine: "FakeEngine", config: FakeConfig) -> None:
        self.engine, self.config = engine, config
        self.profile = -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory: tuple[int, int] | None = None

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return 0 <= index < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def infer_shapes(self) -> list[str]:
        return [spec.name for spec in self.engine.fakes.signature.inputs if spec.name not in self.shapes]

    def set_device_memory(self, memory: int, size: int) -> None:
        self.memory = memory, size

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return memory % 256 == 0

    def execute_async_v3(self, stream: int) -> bool:
        assert self.config.strategy == "user managed"
        assert self.memory is not None
        assert self.memory[1] >= 100 * (1 + self.profile)
        addresses = dict(self.addresses)
        self.engine.device.enqueue(lambda: self.compute(addresses))
        return bool(stream == self.engine.device.stream)

    def compute(self, addresses: dict[str, int]) -> None:
        self.engine.device.log.append("engine")
        inputs = {name: self.engine.device.view(addresses[name], shape) for name, shape in self.shapes.items()}
        if not self.engine.warm:
            self.engine.warm = True  # the memory still holds NaN
            return
        eps = self.engine.fakes.module()(**inputs)["eps"]
        self.engine.device.view(addresses["eps"], eps.shape)[...] = eps


class FakeEngine:
    num_optimization_profiles = 2

    def __init__(self, fakes: Any, device: Any) -> None:
        self.fakes, self.device, self.warm = fakes, device, False
        self.names = [spec.name for spec in fakes.signature.inputs + fakes.signature.outputs]
        self.num_io_tensors = len(self.names)
        self.contexts: list[FakeContext] = []

    def get_tensor_name(self, index: int) -> str:
        return str(self.names[index])

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 100 * (1 + profile)

    def create_runtime_config(self) -> FakeConfig:
        return FakeConfig()

    def create_execution_context(self, *, runtime_config: FakeConfig) -> FakeContext:
        # A context that was made later has to run once before its numbers count.
        self.warm = False
        self.contexts.append(FakeContext(self, runtime_config))
        return self.contexts[-1]


def library(fakes: Any, device: Any, *, rtx: bool) -> Any:
    """What ``import tensorrt_rtx as trt`` or ``import tensorrt as trt`` would give."""
    engines: list[FakeEngine] = []

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, blob: bytes) -> FakeEngine | None:
            if blob != b"engine":
                self.logger.log(Severity.ERROR, "magic tag does not match")
                return None
            engines.append(FakeEngine(fakes, device))
            return engines[-1]

    trt = SimpleNamespace(
        __name__="tensorrt_rtx" if rtx else "tensorrt",
        __version__=VERSION,
        ILogger=Logger,
        Runtime=Runtime,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        engines=engines,
    )
    if rtx:
        trt.ComputeCapability = object
        trt.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    return trt


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAISHIKI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=BACKENDS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bundle(fakes: Any, tmp_path: Path, name: str) -> Bundle:
    made: Bundle = fakes.make_bundle(tmp_path, [fakes.engine_entry(b"engine", backend=name, version=VERSION)])
    return made


@pytest.fixture
def backend(fakes: Any, name: str) -> Iterator[TensorRTBackend]:
    opened = open_fake(fakes, name)
    yield opened
    opened.close()


def open_fake(fakes: Any, name: str) -> TensorRTBackend:
    device = fakes.device()
    return TensorRTBackend(name, library(fakes, device, rtx=name == "tensorrt-rtx"), device)


def load(backend: TensorRTBackend, bundle: Bundle) -> TensorRTModule:
    module = backend.load(bundle, "denoiser", "fp16")
    assert isinstance(module, TensorRTModule)
    return module


def draw_inputs(seed: int = 0, *, batch: int = 2, height: int = 5) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    image = (batch, 3, height, 7)
    time = np.zeros((batch, len(COLUMNS)), np.float32)
    time[:, 2:6] = *(rng.random(2) + 0.5), -2.0, 2.0  # eps from noisy and condition, between two bounds
    return {"noisy": rng.random(image, np.float32), "condition": rng.random(image, np.float32), "time": time}


def assert_same_image(image: Array, expected: Array) -> None:
    """Equal but for rounding: the device multiplies by quotients in fp32 where the host divides."""
    np.testing.assert_allclose(image, expected, rtol=1e-5, atol=1e-5)


def assert_right(fakes: Any, module: Any, inputs: dict[str, Array]) -> None:
    np.testing.assert_array_equal(module(**inputs)["eps"], fakes.module()(**inputs)["eps"])


def test_module_computes(fakes: Any, backend: TensorRTBackend, bundle: Bundle) -> None:
    module = load(backend, bundle)
    for seed in range(2):
        assert_right(fakes, module, draw_inputs(seed))
    (engine,) = backend.trt.engines
    assert len(engine.contexts) == 1


def test_module_has_a_context_per_sizes_and_scratch_per_profile(
    fakes: Any, backend: TensorRTBackend, bundle: Bundle
) -> None:
    module = load(backend, bundle)
    for height in (5, 6, 16):
        assert_right(fakes, module, draw_inputs(height=height))
    contexts = backend.trt.engines[0].contexts
    assert [context.profile for context in contexts] == [0, 0, 1]
    assert contexts[0].memory == contexts[1].memory != contexts[2].memory


def test_module_keeps_few_executions(fakes: Any, backend: TensorRTBackend, bundle: Bundle) -> None:
    module = load(backend, bundle)
    for height in range(1, MAX_EXECUTIONS + 2):
        assert_right(fakes, module, draw_inputs(height=height))
    assert len(module._executions) == MAX_EXECUTIONS


def test_module_refuses_sizes_of_no_profile(backend: TensorRTBackend, bundle: Bundle) -> None:
    with pytest.raises(ValueError, match=r"no profile of the engine holds .*'batch': 9.*it was built for: batch 1\.\."):
        load(backend, bundle)(**draw_inputs(batch=9))


def test_module_refuses_another_dtype(backend: TensorRTBackend, bundle: Bundle) -> None:
    inputs = draw_inputs()
    with pytest.raises(ValueError, match="expected noisy: float32"):
        load(backend, bundle)(**inputs | {"noisy": inputs["noisy"].astype(np.float64)})


@pytest.mark.parametrize("eta", [0.0, 1.0], ids=["deterministic", "noise"])
def test_run_loop_equals_the_host_loop(fakes: Any, backend: TensorRTBackend, bundle: Bundle, eta: float) -> None:
    module = load(backend, bundle)
    for seed in range(2):
        loop = fakes.draw_loop(eta=eta, seed=seed)
        expected = run_loop_on_host(fakes.module(), loop, no_progress)
        assert_same_image(backend.run_loop(module, loop, no_progress), expected)
    assert module.loop.captured is True
    assert backend.device.log.count("capture") == 1


def test_run_loop_and_calls_share_memory_without_harm(fakes: Any, backend: TensorRTBackend, bundle: Bundle) -> None:
    module, loop = load(backend, bundle), fakes.draw_loop()
    expected = run_loop_on_host(fakes.module(), loop, no_progress)
    for seed in range(2):
        assert_right(fakes, module, draw_inputs(seed))
        assert_same_image(backend.run_loop(module, loop, no_progress), expected)


def test_run_loop_asks_whether_the_engine_can_be_captured(
    fakes: Any, backend: TensorRTBackend, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeContext, "is_stream_capturable", lambda self, stream: False, raising=False)
    module, loop = load(backend, bundle), fakes.draw_loop()
    result = backend.run_loop(module, loop, no_progress)
    assert_same_image(result, run_loop_on_host(fakes.module(), loop, no_progress))
    assert module.loop.captured is False


def test_run_loop_timed_is_the_same_loop(fakes: Any, backend: TensorRTBackend, bundle: Bundle) -> None:
    module, loop = load(backend, bundle), fakes.draw_loop()
    timed = backend.run_loop_timed(module, loop)
    np.testing.assert_array_equal(timed.x, backend.run_loop(module, loop, no_progress))
    assert timed.clock == "device"
    assert timed.wall_ms > 0
    assert timed.engine_ms > 0
    assert isinstance(backend, TimesLoops)


def test_run_loop_without_a_table_calls_the_engine_from_the_host(
    fakes: Any, backend: TensorRTBackend, bundle: Bundle
) -> None:
    module, loop = load(backend, bundle), fakes.draw_loop(steps=4)
    loop = replace(loop, solver=replace(loop.solver, table=None))
    expected = run_loop_on_host(fakes.module(), loop, no_progress)
    seen: list[int] = []
    assert_same_image(backend.run_loop(module, loop, lambda k, x: seen.append(k)), expected)
    assert seen == [0, 1, 2, 3]
    assert module.loop.captured is None
    timed = backend.run_loop_timed(module, loop)
    assert_same_image(timed.x, expected)
    assert timed.clock == "host"


def test_device_ms_is_a_run_without_its_copies(fakes: Any, backend: TensorRTBackend, bundle: Bundle) -> None:
    module, inputs = load(backend, bundle), draw_inputs()
    assert isinstance(module, TimesItself)
    module(**inputs)
    backend.device.log.clear()
    assert module.device_ms(**inputs) == len(backend.device.log) - backend.device.log.index("mark") - 2
    assert [line.split()[0] for line in backend.device.log if line.startswith(("upload", "mark"))] == [
        *["upload"] * 3,
        *["mark"] * 2,
    ]
    with pytest.raises(ValueError, match="no profile of the engine holds"):
        module.device_ms(**draw_inputs(batch=9))


@pytest.mark.parametrize("run", ["run_loop", "run_loop_timed"])
def test_run_loop_refuses_a_foreign_module(fakes: Any, backend: TensorRTBackend, run: str) -> None:
    options = (no_progress,) if run == "run_loop" else ()
    with pytest.raises(TypeError, match="expected a module that this backend loaded"):
        getattr(backend, run)(fakes.module(), fakes.draw_loop(), *options)


def test_backend_is_thread_safe(fakes: Any, backend: TensorRTBackend, bundle: Bundle) -> None:
    module, failures = load(backend, bundle), []

    def work(seed: int) -> None:
        try:
            for height in (5, 6, 16):
                assert_right(fakes, module, draw_inputs(seed, height=height))
        except AssertionError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_load_checks_the_key_before_it_deserializes(
    fakes: Any, backend: TensorRTBackend, tmp_path: Path, name: str
) -> None:
    bundle = fakes.make_bundle(tmp_path, [fakes.engine_entry(b"engine", backend=name, version="1.6.0.0")])
    with pytest.raises(BackendError, match=r"its builder_version is 1\.6\.0\.0, installed is 1\.7\.1\.116"):
        load(backend, bundle)
    assert not backend.trt.engines


def test_load_of_an_engine_that_tensorrt_refuses(
    fakes: Any, backend: TensorRTBackend, tmp_path: Path, name: str
) -> None:
    entry = fakes.engine_entry(b"other", backend=name, version=VERSION)
    bundle = fakes.make_bundle(tmp_path, [entry], content=b"other")
    with pytest.raises(BackendError, match="refuses it: magic tag does not match"):
        load(backend, bundle)


def test_load_of_an_engine_with_other_tensors(
    backend: TensorRTBackend, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEngine, "get_tensor_name", lambda self, index: f"tensor{index}")
    with pytest.raises(BackendError, match=r"expected the tensors \['condition', 'eps', 'noisy', 'time'\]"):
        load(backend, bundle)


@pytest.mark.parametrize(
    ("method", "answer", "message"),
    [
        ("set_input_shape", False, r"TensorRT refuses the shape \(2, 3, 5, 7\) of noisy"),
        ("set_optimization_profile_async", False, "TensorRT refuses the profile 0"),
        ("set_tensor_address", False, "TensorRT refuses the address of noisy"),
        ("execute_async_v3", False, "TensorRT refuses the execution"),
        ("infer_shapes", ["noisy"], r"TensorRT does not know the shapes of \['noisy'\]"),
    ],
)
def test_module_reports_a_refusal(
    backend: TensorRTBackend, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, method: str, answer: Any, message: str
) -> None:
    monkeypatch.setattr(FakeContext, method, lambda *arguments: answer)
    with pytest.raises(BackendError, match=message):
        load(backend, bundle)(**draw_inputs())


def test_close_ends_all_use(fakes: Any, name: str, bundle: Bundle) -> None:
    backend = open_fake(fakes, name)
    module = load(backend, bundle)
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match=f"this {name} backend is closed"):
        module(**draw_inputs())
    assert backend.device.log[-1] == "close"


def cache_file(bundle: Bundle, cache_home: Path) -> Path:
    return cache_home / "rtx" / bundle.module("denoiser").engines[0].key_hash


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, b"new+"), (b"old", b"old+"), (b"foreign", b"foreign+"), (b"broken", b"new+")],
    ids=["absent", "usable", "of another GPU", "broken"],
)
@pytest.mark.parametrize("name", ["tensorrt-rtx"])
def test_runtime_cache_is_kept(
    fakes: Any, backend: TensorRTBackend, bundle: Bundle, cache_home: Path, before: bytes | None, after: bytes
) -> None:
    file = cache_file(bundle, cache_home)
    if before is not None:
        file.parent.mkdir(parents=True)
        file.write_bytes(before)
    assert_right(fakes, load(backend, bundle), draw_inputs())
    assert file.read_bytes() == after
    config = backend.trt.engines[0].contexts[0].config
    assert config.cache is not None
    assert config.dynamic_shapes_kernel_specialization_strategy == "eager"


@pytest.mark.parametrize("name", ["tensorrt-rtx"])
def test_runtime_cache_that_cannot_be_written_is_no_error(
    fakes: Any, backend: TensorRTBackend, bundle: Bundle, cache_home: Path
) -> None:
    cache_home.write_bytes(b"a file where a folder should be")
    assert_right(fakes, load(backend, bundle), draw_inputs())


@pytest.mark.parametrize("name", ["tensorrt"])
def test_enterprise_tensorrt_has_no_runtime_cache(
    fakes: Any, backend: TensorRTBackend, bundle: Bundle, cache_home: Path
) -> None:
    assert_right(fakes, load(backend, bundle), draw_inputs())
    assert not cache_home.exists()


USED = {
    "Runtime": ["deserialize_cuda_engine"],
    "ICudaEngine": [
        "create_execution_context",
        "create_runtime_config",
        "get_device_memory_size_for_profile_v2",
        "get_tensor_name",
        "num_io_tensors",
        "num_optimization_profiles",
    ],
    "IRuntimeConfig": [
        "create_runtime_cache",
        "dynamic_shapes_kernel_specialization_strategy",
        "set_execution_context_allocation_strategy",
        "set_runtime_cache",
    ],
    "IRuntimeCache": ["deserialize", "serialize"],
    "IExecutionContext": [
        "execute_async_v3",
        "infer_shapes",
        "is_stream_capturable",
        "set_device_memory",
        "set_input_shape",
        "set_optimization_profile_async",
        "set_tensor_address",
    ],
    "ExecutionContextAllocationStrategy": ["USER_MANAGED"],
    "DynamicShapesKernelSpecializationStrategy": ["EAGER"],
    "ComputeCapability": ["SM89"],
}


def test_tensorrt_rtx_has_every_name_used() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install 'saishiki[rtx]'")
    missing = [
        f"{owner}.{name}" for owner, names in USED.items() for name in names if not hasattr(getattr(trt, owner), name)
    ]
    assert not missing


def test_logger_keeps_what_tensorrt_rtx_says(caplog: pytest.LogCaptureFixture) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install 'saishiki[rtx]'")
    errors: deque[str] = deque(maxlen=3)
    runtime = trt.Runtime(tensorrt._logger_into(errors, trt))
    assert runtime.deserialize_cuda_engine(b"no engine" * 100) is None
    assert "Serialization" in errors[0]
    assert "Serialization" in caplog.text


def installed(*packages: str) -> Callable[[str], bool]:
    return lambda package: package in packages


@pytest.mark.parametrize(
    ("packages", "problem", "message"),
    [
        ([], None, "tensorrt_rtx is not installed; run: pip install 'saishiki[rtx]'"),
        (["tensorrt_rtx"], None, "cuda.core and cuda.bindings is not installed"),
        (["tensorrt_rtx", "cuda.core"], None, "cuda.bindings is not installed"),
        (["tensorrt_rtx", "cuda.core", "cuda.bindings"], "no NVIDIA driver (libcuda.so.1) found", "no NVIDIA driver"),
    ],
    ids=["library", "cuda-core", "cuda-bindings", "driver"],
)
def test_why_unavailable(
    monkeypatch: pytest.MonkeyPatch, packages: list[str], problem: str | None, message: str
) -> None:
    monkeypatch.setattr(tensorrt, "_is_installed", installed(*packages))
    monkeypatch.setattr(tensorrt, "driver_problem", lambda: problem)
    reason = why_unavailable("tensorrt-rtx")
    assert reason is not None
    assert message in reason
    with pytest.raises(BackendError, match=re.escape(reason)):
        tensorrt.open_tensorrt("tensorrt-rtx", 0)


def test_why_unavailable_where_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "_is_installed", installed("tensorrt", "cuda.core", "cuda.bindings"))
    monkeypatch.setattr(tensorrt, "driver_problem", lambda: None)
    assert why_unavailable("tensorrt") is None


def test_why_unavailable_of_an_unknown_backend() -> None:
    assert why_unavailable("torch") == "unknown backend 'torch'; expected one of tensorrt-rtx, tensorrt"
