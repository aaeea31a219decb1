"""TensorRT for RTX and enterprise TensorRT: one code path, told apart by ``hasattr(trt, "ComputeCapability")``.

An engine is compared with what is installed before it is deserialized. Every combination of sizes gets an execution
context of its own, because a recorded CUDA graph belongs to its context; contexts of one profile share their scratch
memory, since they run one after the other on one stream.
"""

import importlib
import importlib.util
import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saishiki.runtime.backends.cuda import INSTALL, CudaDevice, driver_problem
from saishiki.runtime.backends.device import InputUse, Memory, padded_bytes
from saishiki.runtime.backends.engine_choice import check_engine, choose_engine, choose_profile
from saishiki.runtime.backends.on_device import DeviceBackend, DeviceModule
from saishiki.runtime.backends.protocol import Module
from saishiki.runtime.backends.rtx_cache import RuntimeCache
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.cache import cache_folder
from saishiki.runtime.errors import BackendError
from saishiki.runtime.manifest import EngineEntry, Precision
from saishiki.runtime.signature import Array, Signature, Sizes, profiles_for

_LOG = logging.getLogger(__name__)

PACKAGES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
EXTRAS = {"tensorrt-rtx": "rtx", "tensorrt": "tensorrt"}

MAX_EXECUTIONS = 8


def why_unavailable(name: str) -> str | None:
    """Why a backend cannot run here, or None where it can. Loads no library but the driver's, and never raises."""
    if name not in PACKAGES:
        return f"unknown backend {name!r}; expected one of {', '.join(PACKAGES)}"
    if not _is_installed(PACKAGES[name]):
        return f"{PACKAGES[name]} is not installed; run: pip install 'saishiki[{EXTRAS[name]}]'"
    missing = [package for package in ("cuda.core", "cuda.bindings") if not _is_installed(package)]
    if missing:
        return f"{' and '.join(missing)} is not installed; run: pip install 'saishiki[{EXTRAS[name]}]', or {INSTALL}"
    return driver_problem()


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # a parent package is missing, or is a stub without a spec
        return False


def open_tensorrt(name: str, device: int) -> "TensorRTBackend":
    """The backend ``tensorrt-rtx`` or ``tensorrt`` on a GPU; raises ``BackendError`` saying what is missing."""
    if reason := why_unavailable(name):
        raise BackendError(reason)
    try:
        trt = importlib.import_module(PACKAGES[name])
    except ImportError as error:
        raise BackendError(
            f"{PACKAGES[name]} does not load ({error}); run: pip install -U 'saishiki[{EXTRAS[name]}]'"
        ) from error
    return TensorRTBackend(name, trt, CudaDevice(device))


class TensorRTExecution:
    """An engine ready at fixed sizes: an execution context, and memory for every input and output."""

    def __init__(self, context: Any, device: Any, signature: Signature, sizes: Sizes, scratch: Memory) -> None:
        self._context, self._device = context, device
        self._scratch = scratch  # freed with the last context that uses it
        specs = signature.inputs + signature.outputs
        self.memory: Mapping[str, Memory] = {
            spec.name: device.allocate(padded_bytes(spec.nbytes(sizes))) for spec in specs
        }

    def enqueue(self, addresses: Mapping[str, int]) -> None:
        """Runs the engine once on the device's stream, with some tensors elsewhere than in :attr:`memory`."""
        for name, memory in self.memory.items():
            _require(self._context.set_tensor_address(name, addresses.get(name, memory.address)), f"address of {name}")
        _require(self._context.execute_async_v3(self._device.stream), "execution")

    def rows(self, name: str, rows: Array) -> Array:
        """What is uploaded for an input: its values as they are."""
        return rows

    def prepare(self) -> None:
        """Nothing: an engine computes everything anew."""

    def is_capturable(self) -> bool:
        """Whether the engine can be recorded into a CUDA graph; enterprise TensorRT has no question for it, and can."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(self._device.stream))


class TensorRTModule(DeviceModule):
    """An engine on a device. Its backend's lock is held while it runs."""

    def __init__(self, backend: "TensorRTBackend", entry: EngineEntry, bundle: Bundle, module: str) -> None:
        super().__init__(backend, bundle.module(module).signature)
        self._tensorrt, self._entry, self._name = backend, entry, module
        self._profiles = profiles_for(self.signature, bundle.manifest.profiles)
        self._engine = backend.deserialize(bundle.file(entry.file))
        self._check_tensors()
        self._cache: RuntimeCache | None = None
        self._scratch: dict[int, Memory] = {}

    def _check_tensors(self) -> None:
        engine = self._engine
        found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        expected = {spec.name for spec in self.signature.inputs + self.signature.outputs}
        if found != expected or engine.num_optimization_profiles != len(self._profiles):
            raise BackendError(
                f"{self._entry.file.path}: expected the tensors {sorted(expected)} and {len(self._profiles)} profiles "
                f"as in the manifest, found {sorted(found)} and {engine.num_optimization_profiles}; export again"
            )

    def new_execution(self, sizes: Sizes, use: InputUse) -> TensorRTExecution:
        """An execution context at these sizes; the first of an engine may have its kernels compiled."""
        index = choose_profile(self._profiles, sizes)
        device = self._backend.device
        scratch = self._scratch_for(index)
        context = self._new_context(index, sizes)
        context.set_device_memory(scratch.address, scratch.nbytes)
        _LOG.info("preparing %s at %s; the first time, kernels are compiled for this GPU", self._name, dict(sizes))
        execution = TensorRTExecution(context, device, self.signature, sizes, scratch)
        execution.enqueue({})
        device.synchronize()
        if self._cache is not None:
            self._cache.save()
        return execution

    def _scratch_for(self, profile: int) -> Memory:
        if profile not in self._scratch:
            nbytes = self._engine.get_device_memory_size_for_profile_v2(profile)
            self._scratch[profile] = self._backend.device.allocate(nbytes)
        return self._scratch[profile]

    def _new_context(self, profile: int, sizes: Sizes) -> Any:
        stream = self._backend.device.stream
        context = self._engine.create_execution_context(runtime_config=self._runtime_config())
        if context is None:
            raise BackendError(f"{self._name}: TensorRT makes no execution context: {self._tensorrt.last_error()}")
        _require(context.set_optimization_profile_async(profile, stream), f"profile {profile}")
        for spec in self.signature.inputs:
            _require(context.set_input_shape(spec.name, spec.shape(sizes)), f"shape {spec.shape(sizes)} of {spec.name}")
        if unset := context.infer_shapes():
            raise BackendError(f"{self._name}: TensorRT does not know the shapes of {unset} at {dict(sizes)}")
        return context

    def _runtime_config(self) -> Any:
        trt = self._tensorrt.trt
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if hasattr(trt, "ComputeCapability"):
            # LAZY would begin with slow fallback kernels, and record those into the graphs.
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            if self._cache is None:
                self._cache = RuntimeCache(config, cache_folder("rtx") / self._entry.key_hash)
            config.set_runtime_cache(self._cache.handle)
        return config

    def close(self) -> None:
        """Frees graphs, contexts and the engine, in that order."""
        super().close()
        self._scratch.clear()
        self._engine = None


def _require(done: bool, what: str) -> None:
    if not done:
        raise BackendError(f"TensorRT refuses the {what}; its own message is in the log of {__name__}")


class TensorRTBackend(DeviceBackend):
    """TensorRT or TensorRT for RTX on one GPU. Thread-safe: one run at a time.

    Args:
        trt: the Python package.
        device: a :class:`saishiki.runtime.backends.cuda.CudaDevice`, or what behaves like one.
    """

    default_precision: Precision = "fp16"

    def __init__(self, name: str, trt: Any, device: Any) -> None:
        super().__init__(name, device)
        self.trt = trt
        self._errors: deque[str] = deque(maxlen=3)
        self._logger = _logger_into(self._errors, trt)
        self._runtime = trt.Runtime(self._logger)

    def check(self, bundle: Bundle, module: str, precision: Precision) -> EngineEntry:
        """The engine of a module that runs here; raises ``BackendError`` where the manifest shows that none does."""
        version, target = self.trt.__version__, self.device.target
        entry = choose_engine(
            bundle, module, backend=self.name, precision=precision, builder_version=version, target=target
        )
        check_engine(entry, builder_version=version, target=target, bundle=bundle)
        return entry

    def load(self, bundle: Bundle, module: str, precision: Precision) -> Module:
        """Loads a module's engine. Raises ``BackendError`` where the bundle has none that runs here."""
        entry = self.check(bundle, module, precision)
        with self.working():
            loaded = TensorRTModule(self, entry, bundle, module)
            self._modules.append(loaded)
        return loaded

    def deserialize(self, file: Path) -> Any:
        """The engine in a file."""
        engine = self._runtime.deserialize_cuda_engine(file.read_bytes())
        if engine is None:
            raise BackendError(f"{file}: {self.trt.__name__} {self.trt.__version__} refuses it: {self.last_error()}")
        return engine

    def last_error(self) -> str:
        """What TensorRT logged last as errors."""
        return "; ".join(self._errors) or "no reason given"

    def release(self) -> None:
        """Frees TensorRT's own runtime."""
        self._runtime = None


def _logger_into(errors: deque[str], trt: Any) -> Any:
    """A TensorRT logger that keeps the last errors, and passes everything on to ``logging``."""
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.Severity.ERROR: logging.ERROR,
        trt.ILogger.Severity.WARNING: logging.WARNING,
        trt.ILogger.Severity.INFO: logging.DEBUG,
        trt.ILogger.Severity.VERBOSE: logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if levels[severity] == logging.ERROR:
                errors.append(msg)
            _LOG.log(levels[severity], "%s", msg)

    return Logger()
