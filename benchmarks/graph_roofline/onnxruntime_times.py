"""What each layer takes in ONNX Runtime, by its own profiler, fully optimised.

ONNX Runtime fuses, splits and re-lays nodes; what it ran is told by the graph it saves after optimising. A kernel's
time belongs to the layer that writes the tensor it computes, or helps to: from a kernel whose output has no name in our
graph (a part of a norm, a change of layout) one follows the readers until one has. Norms are expanded beforehand, just
as ONNX Runtime would, so that their kernels have names. What leads to no layer is ``other``.

With the CUDA provider the profiler times launches. Where the driver waits for each kernel at its launch, which it does
under ``CUDA_LAUNCH_BLOCKING=1`` from before its first use, that is the kernels' time and some microseconds for waiting.
"""

import json
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from graph_roofline.layers import Layer
from graph_roofline.sized_graph import expanded

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
WAIT = "CUDA_LAUNCH_BLOCKING"
OTHER = "other"
NCHWC = "_nchwc"
WARMUP = 3


@dataclass(frozen=True)
class LayerTimes:
    """Microseconds of every layer by name, with ``other`` for what belongs to none, and of whole profiled runs."""

    layers: Mapping[str, float]
    run_us: tuple[float, ...]


def layer_times(
    model: onnx.ModelProto,
    weights: Path,
    layers: Sequence[Layer],
    feeds: Mapping[str, Any],
    *,
    runs: int,
    threads: int = 0,
    provider: str = CPU,
) -> LayerTimes:
    """Medians over ``runs`` runs of a model from :func:`.sized_model` after warm-up ones.

    Args:
        weights: the folder of the file with the weights.
        threads: 0 takes all cores.
        provider: ``CPU`` or ``CUDA``; raises ``ValueError`` for CUDA where launches are not waited for, and
            ``RuntimeError`` where ONNX Runtime goes on without it.
    """
    import onnxruntime

    if provider == CUDA and os.environ.get(WAIT) != "1":
        raise ValueError(f"layers are timed on CUDA only under {WAIT}=1, set before CUDA is first used")

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        blob = _named(expanded(model)).SerializeToString()
        session = onnxruntime.InferenceSession(blob, options, providers=list(dict.fromkeys((provider, CPU))))
        if provider not in session.get_providers():
            raise RuntimeError(f"ONNX Runtime runs on {', '.join(session.get_providers())}, not on {provider}")
        for _ in range(WARMUP + runs):
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text())
        optimised = onnx.load(options.optimized_model_filepath, load_external_data=False)
    owners = kernel_owners(optimised, layers)
    return LayerTimes(_summed(events, owners, runs), tuple(_runs_us(events)[-runs:]))


def kernel_owners(optimised: onnx.ModelProto, layers: Sequence[Layer]) -> dict[str, str]:
    """The layer of every node of the graph that ran, by the node's name."""
    layer_of = {tensor: layer.name for layer in layers for tensor in layer.tensors}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in optimised.graph.node:
        for name in node.input:
            readers[name].append(node)
    owners: dict[str, str] = {}
    # Readers come later in the file, so their owners are known.
    for node in reversed(optimised.graph.node):
        own = [node.name.removesuffix(NCHWC), *node.output]
        found = [layer_of[name] for name in own if name in layer_of]
        found += [owners[reader.name] for name in node.output for reader in readers[name]]
        owners[node.name] = next((owner for owner in found if owner != OTHER), OTHER)
    return owners


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    for index, node in enumerate(model.graph.node):
        node.name = f"node_{index}"
    return model


def _summed(events: Sequence[Mapping[str, Any]], owners: Mapping[str, str], runs: int) -> dict[str, float]:
    kernels: dict[str, list[float]] = defaultdict(list)
    for event in events:
        name = str(event["name"])
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            kernels[name.removesuffix("_kernel_time")].append(float(event["dur"]))
    layers: dict[str, float] = defaultdict(float)
    for name, durations in kernels.items():
        layers[owners.get(name, OTHER)] += statistics.median(durations[-runs:])
    return dict(layers)


def _runs_us(events: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(event["dur"]) for event in events if event["name"] == "model_run"]
