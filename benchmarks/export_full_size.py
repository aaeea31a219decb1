"""Exports the full-size AnimeDiffusion network to fp16 ONNX and an SM89 engine, and measures what that takes.

    python benchmarks/export_full_size.py [--output benchmarks/results/cpu/export_full_size.json]

Weights are random, seeded, and distinct, so sizes and times are those of a trained checkpoint. Measured in processes of
their own: the whole command (wall seconds, and peak RSS of the process with all its children), then one forward pass at
256x256 of PyTorch eager and of the exported fp32 and fp16 graphs in ONNX Runtime, in turn on the same cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from reporting import describe_machine, report
from safetensors.torch import save_file

from saishiki.models.animediffusion import CONFIGS, AnimeDiffusion, modules
from saishiki.runtime.backends import open_backend
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.schedule import linear_betas

SIZE = 256
ROUNDS = 7
RSS_INTERVAL_S = 0.05


def random_network(seed: int = 0) -> AnimeDiffusion:
    """The published configuration with seeded random weights."""
    torch.manual_seed(seed)
    network = AnimeDiffusion(CONFIGS["published"]).eval()
    network.set_schedule(torch.from_numpy(linear_betas(1000, 1e-6, 1e-2)))
    return network


def peak_rss_bytes(process: subprocess.Popen[bytes]) -> int:
    """The largest sum of resident sets over a process and its children, sampled until it ends."""
    parent, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        peak = max(peak, _rss_of_tree(parent))
        time.sleep(RSS_INTERVAL_S)
    return peak


def _rss_of_tree(parent: psutil.Process) -> int:
    try:
        return sum(member.memory_info().rss for member in (parent, *parent.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0


def measure_export(checkpoint: Path, bundle: Path, cache: Path) -> dict[str, Any]:
    """Wall seconds and peak RSS of ``export-engines`` from a cold engine cache."""
    command = [
        sys.executable,
        "-m",
        "saishiki.export",
        str(checkpoint),
        "-o",
        str(bundle),
        "--size",
        str(SIZE),
        "--json",
    ]
    command += ["--attention-heads", "4"]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"SAISHIKI_CACHE": str(cache)})
    peaks: list[int] = []
    watcher = threading.Thread(target=lambda: peaks.append(peak_rss_bytes(process)))
    watcher.start()
    output, _ = process.communicate()
    watcher.join()
    printed = json.loads(output)
    return {
        "seconds": round(time.perf_counter() - begin, 1),
        "peak_rss_gb": round(peaks[0] / 1e9, 2),
        "verdict": printed["verdict"],
        "errors": {
            f"{row['module']} {row['precision']}": row["error"] for row in printed["manifest"]["certificate"]["rows"]
        },
        "engine_mb": {
            name: round(module["engines"][0]["file"]["bytes"] / 1e6, 1)
            for name, module in printed["manifest"]["modules"].items()
        },
    }


def forward_runners(network: AnimeDiffusion, bundle_path: Path) -> dict[str, Callable[[], Any]]:
    """One denoiser call at 256x256: PyTorch eager fp32, ONNX Runtime fp32 and fp16."""
    bundle = Bundle.open(bundle_path)
    signature = bundle.module("denoiser").signature
    rng = np.random.default_rng(0)
    sizes = {"batch": 1, "height": SIZE, "width": SIZE}
    inputs = {spec.name: rng.standard_normal(spec.shape(sizes), dtype=np.float32) for spec in signature.inputs}
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    eager = modules(network)["denoiser"]
    backend = open_backend(bundle, "onnxruntime", "cpu")
    fp32, fp16 = backend.load(bundle, "denoiser", "fp32"), backend.load(bundle, "denoiser", "fp16")
    return {
        "torch eager fp32": lambda: eager(**tensors),
        "onnxruntime fp32": lambda: fp32(**inputs),
        "onnxruntime fp16": lambda: fp16(**inputs),
    }


def measure_forwards(runners: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """Seconds of each runner over several rounds, taken in turn after one round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for round_number in range(ROUNDS + 1):
        for name, run in runners.items():
            begin = time.perf_counter()
            with torch.inference_mode():
                run()
            if round_number > 0:
                seconds[name].append(time.perf_counter() - begin)
    return {
        name: {"median_s": round(statistics.median(values), 3), "min_s": round(min(values), 3), "n": len(values)}
        for name, values in seconds.items()
    }


def main() -> None:
    """Measures, prints, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network = random_network()
        save_file(network.state_dict(), folder / "full.safetensors")
        export = measure_export(folder / "full.safetensors", folder / "full.saishiki", folder / "cache")
        forwards = measure_forwards(forward_runners(network, folder / "full.saishiki"))
    result = {"environment": describe_machine(), "size": SIZE, "export": export, "forward": forwards}
    report(result, arguments.output)


if __name__ == "__main__":
    main()
