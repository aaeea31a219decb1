"""Builds one engine: ``python -m saishiki.export.engines.worker`` with a request on stdin, in a process of its own.

TensorRT-RTX's builder can crash, and takes the process with it; see ``build.py`` for the other side.
"""

import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from saishiki.export.child_process import die_with_parent, leave_no_core_file
from saishiki.export.engines.header import read_header
from saishiki.export.engines.log import BuildLog, logger_into
from saishiki.export.engines.mapped_weights import MappedWeights
from saishiki.export.engines.network import (
    allow_decomposed_attention,
    check_network,
    count_fusable_attentions,
    network_from_onnx,
)
from saishiki.export.engines.request import (
    ANSWER_NAME,
    ENGINE_NAME,
    WAY_OUT,
    BuildAnswer,
    BuildReport,
    BuildRequest,
    EngineBuildError,
)
from saishiki.export.engines.stream import serialize_to_file
from saishiki.export.engines.target import Target, import_builder
from saishiki.export.freed_memory import returning_memory
from saishiki.runtime.bundle import sha256_of_file
from saishiki.runtime.signature import Profile, Signature


def main() -> None:
    """Reads a request from stdin, builds, and writes the answer into the request's folder."""
    # A crash is expected now and then.
    leave_no_core_file()
    die_with_parent()
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=BuildRequest)
    (Path(request.folder) / ANSWER_NAME).write_bytes(msgspec.json.encode(answer_to(request)))


def answer_to(request: BuildRequest) -> BuildAnswer:
    """The report of a build, or the reason why it failed."""
    try:
        return BuildAnswer(report=engine_from_onnx(request), error=None)
    except EngineBuildError as error:
        return BuildAnswer(report=None, error=str(error))


def engine_from_onnx(request: BuildRequest) -> BuildReport:
    """Builds the engine into the request's folder. Raises ``EngineBuildError`` with what the builder says."""
    trt = import_builder(request.target.backend)
    log = BuildLog()
    engine = Path(request.folder) / ENGINE_NAME
    with MappedWeights() as weights:
        seconds, attention_ops = _build(request, weights, engine, log=log, trt=trt)
    return BuildReport(
        builder=trt.__name__,
        builder_version=trt.__version__,
        target=request.target.name,
        seconds=seconds,
        profiles=len(request.profiles),
        attention_ops=attention_ops,
        **_contents(engine, log),
    )


def _build(
    request: BuildRequest, weights: MappedWeights, engine: Path, *, log: BuildLog, trt: Any
) -> tuple[float, int]:
    """Writes the engine; the seconds that it took, and the number of attentions that it may fuse."""
    logger = logger_into(log, trt)
    builder = trt.Builder(logger)
    network = network_from_onnx(Path(request.onnx), weights, builder=builder, logger=logger, trt=trt)
    check_network(network, request.signature, request.profiles)
    allow_decomposed_attention(network, trt)
    attention_ops = count_fusable_attentions(network, trt)
    config = _config(builder, request, trt)
    start = time.monotonic()
    with returning_memory(weights.return_pages):
        built = serialize_to_file(network, config, engine, builder=builder, trt=trt)
    if not built:
        raise EngineBuildError(f"the builder fails: {'; '.join(log.errors) or 'no reason given'}; {WAY_OUT}")
    return round(time.monotonic() - start, 2), attention_ops


def _contents(engine: Path, log: BuildLog) -> dict[str, Any]:
    return {
        "layers": log.layers(),
        "fused_attentions": log.fused_attentions(),
        "activation_bytes": log.activation_bytes,
        "bytes": engine.stat().st_size,
        "sha256": sha256_of_file(engine),
        "header": read_header(engine),
    }


def _config(builder: Any, request: BuildRequest, trt: Any) -> Any:
    config = builder.create_builder_config()
    # Detailed, so that the builder prints its plan.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _set_target(config, request.target, trt)
    for profile in request.profiles:
        _add_profile(config, builder, request.signature, profile)
    return config


def _set_target(config: Any, target: Target, trt: Any) -> None:
    """TensorRT-RTX builds for any capability it knows, enterprise TensorRT for the GPU that is there."""
    if hasattr(trt, "ComputeCapability"):
        # Without it an engine cannot be recorded into a CUDA graph; the runtime brings the memory.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target.sm}"), 0)


def _add_profile(config: Any, builder: Any, signature: Signature, profile: Profile) -> None:
    shapes = builder.create_optimization_profile()
    for spec in signature.inputs:
        shapes.set_shape(spec.name, spec.shape(profile.min), spec.shape(profile.opt), spec.shape(profile.max))
    if config.add_optimization_profile(shapes) < 0:
        raise EngineBuildError(f"the builder refuses the profile {profile}")


if __name__ == "__main__":
    main()
