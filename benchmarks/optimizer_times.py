"""How long the ONNX optimizer takes for each module, with and without the rewrite that we leave out.

    python benchmarks/optimizer_times.py CHECKPOINT [--modules denoiser vae_decoder] [--output FILE]

Copies of one captured graph are optimized as ``torch.onnx`` does it and as ``saishiki.export.onnx_graph`` does, in
turn. The seconds are those of the processor, the fewer of two runs; both must end in the same operators, or nothing is
reported.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from reporting import describe_machine, report
from torch.onnx import ONNXProgram

from saishiki.export import onnx_graph
from saishiki.export.graphs import trace_sizes
from saishiki.export.onnx_graph import capture, optimize
from saishiki.models import Family, LoadedModel, LoadOptions, read_checkpoint, recognize

WAYS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "all_rewrites_s": nullcontext,
    "as_exported_s": onnx_graph.slices_stay,
}
ROUNDS = 2


def main() -> None:
    """Times the modules that are asked for, and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--modules", nargs="+", help="their names; all where this is left out")
    parser.add_argument("--prediction", choices=("eps", "v"), help="as of export-engines")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    checkpoint = read_checkpoint(arguments.checkpoint)
    family = recognize(checkpoint)
    model = family.load(checkpoint, LoadOptions(prediction=arguments.prediction))
    wanted = arguments.modules or list(model.modules)
    unknown = ", ".join(sorted(set(wanted) - set(model.modules)))
    if unknown:
        parser.error(f"{unknown}: not a module of {checkpoint.path}; it has {', '.join(model.modules)}")
    modules = {name: time_module(model, family, name) for name in wanted}
    report({**describe_machine(), "family": family.name, "modules": modules}, arguments.output)


def time_module(model: LoadedModel, family: Family, name: str) -> dict[str, float | int]:
    """Processor seconds of capturing the module, those of the optimizer both ways, and the nodes it leaves.

    Raises ``RuntimeError`` where the two ways lead to different graphs.
    """
    signature = model.signatures[name]
    begin = time.process_time()
    program = capture(model.modules[name], signature, trace_sizes(signature, family))
    seconds = {"capture_s": time.process_time() - begin}
    operators = {}
    for way in list(WAYS) * ROUNDS:
        took, operators[way] = _optimize_copy(program, way)
        seconds[way] = min(took, seconds.get(way, took))
    if operators["all_rewrites_s"] != operators["as_exported_s"]:
        counts = " and ".join(f"{len(nodes)} nodes" for nodes in operators.values())
        raise RuntimeError(f"{name}: the rewrite that is left out changes the graph: {counts}")
    return {**{part: round(took, 2) for part, took in seconds.items()}, "nodes": len(operators["as_exported_s"])}


def _optimize_copy(program: ONNXProgram, way: str) -> tuple[float, list[str]]:
    """Processor seconds, and the operators that are left."""
    copy = ONNXProgram(program.model.clone(), program.exported_program)
    with patch.object(onnx_graph, "slices_stay", WAYS[way]):
        begin = time.process_time()
        optimize(copy)
    return time.process_time() - begin, [node.op_type for node in copy.model.graph.all_nodes()]


if __name__ == "__main__":
    main()
