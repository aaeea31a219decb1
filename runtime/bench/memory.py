"""Memory that a runner needs, as far as files, engines, processes and the GPU's driver tell."""

from collections.abc import Callable

from saishiki.runtime.backends import Backend
from saishiki.runtime.backends.select import device_index
from saishiki.runtime.bench.environment import read_gpus
from saishiki.runtime.bench.runners import Runner
from saishiki.runtime.bench.schema import GpuState, Memory
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.manifest import EngineEntry, GraphEntry, Precision


def gpu_bytes_used(runner: Runner, gpus: Callable[[], tuple[GpuState, ...]] = read_gpus) -> int | None:
    """Bytes in use on the runner's GPU, by all processes; None where it runs on none, or the driver does not tell."""
    index = device_index(runner.device)
    if index is None:
        return None
    found = gpus()
    return found[index].memory_used_bytes if index < len(found) else None


def memory_of(
    bundle: Bundle, backend: Backend, precision: Precision, *, peak_rss_bytes: int | None, gpu_bytes: int | None
) -> Memory:
    """The memory of a runner; weights and activations as the manifest states them for what the backend loads."""
    weights, activations = 0, None
    for name, module in bundle.manifest.modules.items():
        match backend.check(bundle, name, module.closest(precision)):
            case EngineEntry() as engine:
                weights += engine.file.bytes
                activations = (activations or 0) + engine.activation_bytes
            case GraphEntry() as graph:
                weights += (graph.weights or graph.graph).bytes
    return Memory(weights, activations, peak_rss_bytes, gpu_bytes)
