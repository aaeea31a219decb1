"""What an export holds in memory of a network that stays in its file: one weight at a time, never all."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.export.conftest import python_environment

LAYERS, WIDTH = 40, 1024
NETWORK_BYTES = LAYERS * WIDTH * WIDTH * 4

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from saishiki.export.half_graph import half_graph
from saishiki.export.onnx_graph import trace, write_graph
from saishiki.export.precision import RoundedToHalf, scan_ranges
from saishiki.models import read_checkpoint, stored_tensors
from saishiki.models.checkpoints import load_strictly
from saishiki.models.streaming import stream_strictly, streamed_weights
from saishiki.runtime.signature import Signature, TensorSpec

stored_tensors.REOPEN_BYTES = 8 * 2**20
folder, layers, width, load = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
signature = Signature(
    (TensorSpec("input", "float32", ("batch", "3", str(width))),),
    (TensorSpec("y", "float32", ("batch", "3", str(width))),),
    {},
)

def network(layers):
    with torch.device("meta"):
        return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers))).eval()

def export(module):
    with torch.inference_mode(), streamed_weights():
        inputs = {"input": torch.ones(1, 3, width)}
        module(**inputs)
        RoundedToHalf(module)(**inputs)
        scan_ranges(module, [inputs])
    graph = trace(module, signature, {"batch": 2})
    write_graph(half_graph(graph, keep_fp32=()), signature, folder / "half.onnx")
    write_graph(graph, signature, folder / "full.onnx")

def peak():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

checkpoint = read_checkpoint(folder / "network.safetensors")
first = read_checkpoint(folder / "small.safetensors")
small = network(1)
stream_strictly(small, first)
export(small)
before = peak()
whole = network(layers)
{"stream": stream_strictly, "load": load_strictly}[load](whole, checkpoint)
export(whole)
print(json.dumps(peak() - before))
"""


RUN = """
import json, sys
import numpy as np
import onnxruntime
from saishiki.runtime.backends.onnxruntime import OnnxRuntimeBackend

def peak():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

options = OnnxRuntimeBackend(device=None, threads=1, lean=sys.argv[4] == "lean")._options()
before = peak()
session = onnxruntime.InferenceSession(f"{sys.argv[1]}/half.onnx", options, providers=["CPUExecutionProvider"])
session.run(None, {"input": np.ones((1, 3, int(sys.argv[3])), np.float32)})
print(json.dumps(peak() - before))
"""


def growth_of(script: str, folder: Path, how: str) -> int:
    """The bytes by which a process grows that handles the whole network."""
    arguments = [sys.executable, "-P", "-c", script, str(folder), str(LAYERS), str(WIDTH), how]
    done = subprocess.run(arguments, env=python_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout))


def test_export_of_a_streamed_network_does_not_grow_with_its_weights(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {f"{i}.weight": torch.randn((WIDTH, WIDTH), generator=generator) / WIDTH**0.5 for i in range(LAYERS)}
    save_file(weights, tmp_path / "network.safetensors")
    save_file({"0.weight": weights["0.weight"]}, tmp_path / "small.safetensors")
    assert growth_of(SCRIPT, tmp_path, "stream") < 0.4 * NETWORK_BYTES
    # What is loaded does grow: the measure can tell.
    assert growth_of(SCRIPT, tmp_path, "load") > 0.9 * NETWORK_BYTES
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("*.data")}
    assert sizes == {"half.onnx.data": NETWORK_BYTES // 2, "full.onnx.data": NETWORK_BYTES}

    # Certifying maps the file of fp16 weights and holds one of them in fp32; by default ONNX Runtime holds all of them.
    assert growth_of(RUN, tmp_path, "lean") < 0.75 * NETWORK_BYTES
    assert growth_of(RUN, tmp_path, "default") > 0.9 * NETWORK_BYTES
