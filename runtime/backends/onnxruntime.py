"""ONNX Runtime on the CPU or through its CUDA execution provider: the backend that runs everywhere."""

from dataclasses import dataclass
from typing import Any

from saishiki.runtime.backends.cuda import driver_problem
from saishiki.runtime.backends.host_loop import run_loop_on_host, run_loop_on_host_timed
from saishiki.runtime.backends.protocol import DenoisingLoop, Module, OnStep, TimedLoop
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BackendError, BundleError
from saishiki.runtime.manifest import GraphEntry, Precision
from saishiki.runtime.signature import Array, Signature

NAME = "onnxruntime"
CUDA_OPTIONS = {
    # DEFAULT takes cuDNN's fallback list, up to four times slower (onnxruntime#22705).
    "cudnn_conv_algo_search": "HEURISTIC",
    "cudnn_conv_use_max_workspace": "1",
}


@dataclass(frozen=True)
class OnnxRuntimeModule:
    """A graph in an ONNX Runtime session."""

    signature: Signature
    session: Any

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """The outputs by name.

        Raises ``ValueError`` for inputs that do not fit the signature, ``BackendError`` where ONNX Runtime fails.
        """
        self.signature.sizes_from_arrays(inputs)
        names = [spec.name for spec in self.signature.outputs]
        try:
            return dict(zip(names, self.session.run(names, inputs), strict=True))
        except Exception as error:  # ONNX Runtime raises its own classes, derived from Exception alone
            raise BackendError(
                f"ONNX Runtime failed on {', '.join(map(str, self.signature.inputs))}: {error}"
            ) from error


class OnnxRuntimeBackend:
    """ONNX Runtime on one device.

    Args:
        threads: limits the CPU threads of one call; 0 takes all cores.
        lean: run graphs as they are, with weights that stay in their file: half the memory and an instant start, for a
            few slower calls.
    """

    name = NAME

    def __init__(self, *, device: int | None, threads: int = 0, lean: bool = False) -> None:
        self._runtime = _import_onnxruntime()
        self._providers = _providers(self._runtime, device)
        self._threads, self._lean = threads, lean
        # fp16 graphs run in fp32 arithmetic on the CPU, behind casts: nothing is gained there.
        self.default_precision: Precision = "fp32" if device is None else "fp16"

    def check(self, bundle: Bundle, module: str, precision: Precision) -> GraphEntry:
        """The graph of a module; raises ``BackendError`` where the bundle has none in this precision."""
        graphs = bundle.module(module).graphs
        if precision not in graphs:
            raise BackendError(f"{bundle.path}: {module} has no graph in {precision}, only in {', '.join(graphs)}")
        return graphs[precision]

    def load(self, bundle: Bundle, module: str, precision: Precision) -> Module:
        """Loads a module's graph; raises ``BundleError`` where a file is missing or damaged."""
        entry, graph = bundle.module(module), self.check(bundle, module, precision)
        if graph.weights is not None:
            bundle.file(graph.weights)
        path = bundle.file(graph.graph)
        try:
            session = self._runtime.InferenceSession(str(path), self._options(), providers=self._providers)
        except Exception as error:  # as above
            raise BundleError(f"{path}: ONNX Runtime {self._runtime.__version__} cannot load it: {error}") from error
        _check_providers(self._providers, session.get_providers())
        return OnnxRuntimeModule(entry.signature, session)

    def _options(self) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        if self._lean:
            # Optimising folds the casts of all fp16 weights, which are then held in fp32.
            options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
            # By default the casts of all weights run first.
            options.execution_order = self._runtime.ExecutionOrder.PRIORITY_BASED
            options.enable_cpu_mem_arena = options.enable_mem_pattern = False
            options.add_session_config_entry("session.disable_prepacking", "1")
        return options

    def run_loop(self, denoiser: Module, loop: DenoisingLoop, on_step: OnStep) -> Array:
        """Runs the loop with its state in host memory."""
        return run_loop_on_host(denoiser, loop, on_step)

    def run_loop_timed(self, denoiser: Module, loop: DenoisingLoop) -> TimedLoop:
        """The same, and the time in it that went into sessions."""
        return run_loop_on_host_timed(denoiser, loop)

    def close(self) -> None:
        """Nothing to free: sessions go with their modules."""


def _check_providers(wanted: list[Any], working: list[str]) -> None:
    """ONNX Runtime itself only warns, and goes on without the provider that does not load."""
    first = wanted[0] if isinstance(wanted[0], str) else wanted[0][0]
    if first not in working:
        raise BackendError(
            f"ONNX Runtime cannot use its {first} here, only {', '.join(working)}: "
            "the NVIDIA driver, CUDA or cuDNN is missing or too old; update them, or use the device cpu"
        )


def why_unavailable(*, cuda: bool) -> str | None:
    """Why this backend cannot run here, or None where it can."""
    try:
        _providers(_import_onnxruntime(), 0 if cuda else None)
    except BackendError as error:
        return str(error)
    return driver_problem() if cuda else None


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"ONNX Runtime is not installed ({error}); install it with: pip install 'saishiki[cpu]' "
            "(or 'saishiki[gpu]' for CUDA)"
        ) from error
    return onnxruntime


def _providers(runtime: Any, device: int | None) -> list[Any]:
    if device is None:
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        raise BackendError(
            f"onnxruntime {runtime.__version__} has no CUDA provider here; "
            "install it with: pip uninstall onnxruntime && pip install 'saishiki[gpu]'"
        )
    return [("CUDAExecutionProvider", CUDA_OPTIONS | {"device_id": device}), "CPUExecutionProvider"]
