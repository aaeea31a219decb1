"""Exports a network of the published size to fp16 ONNX and SM89 engines, and measures what that takes.

    python benchmarks/export_full_size.py [--output benchmarks/results/cpu/export_full_size.json]
    python benchmarks/export_full_size.py --family colorizediffusion-v2 [--folder DIR] [--targets onnx]

Weights are random, seeded, and distinct, so sizes and times are those of a trained checkpoint. Measured in processes of
their own: the whole command (wall seconds, and peak RSS of the process with all its children). Then, of AnimeDiffusion,
one forward pass at 256x256 of PyTorch eager and of the exported fp32 and fp16 graphs in ONNX Runtime, in turn on the
same cores; of ColorizeDiffusion (all modules, 512x512) the same command again, with nothing changed, and the bound
that its memory has to keep. PyTorch's and the builder's work are in processes of their own, whose peaks are also given
each by itself.
``--folder`` keeps checkpoint (4.8 GB) and bundle; it must have 40 GB left.
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
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from random_weights.colorizediffusion import write_random_checkpoint
from reporting import describe_machine, report
from safetensors.torch import save_file

from saishiki.models import animediffusion
from saishiki.models.animediffusion import AnimeDiffusion, modules
from saishiki.models.colorizediffusion import CONFIGS
from saishiki.runtime.backends import open_backend
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.schedule import linear_betas

SIZE = 256
OPTIONS = ("--size", str(SIZE), "--attention-heads", "4")
ROUNDS = 7
COLORIZEDIFFUSION = {f"colorizediffusion-{generation}": generation for generation in CONFIGS}
COLORIZEDIFFUSION_OPTIONS = ("--size", "512", "--precision", "fp16")
BOUND_PER_BYTE, BOUND_BYTES = 1.6, 1.5e9
"""Peak RSS: so much for every byte that the largest module takes in fp16, and so much besides."""
RSS_INTERVAL_S = 0.05


def random_network(seed: int = 0) -> AnimeDiffusion:
    """The published configuration with seeded random weights."""
    torch.manual_seed(seed)
    network = AnimeDiffusion(animediffusion.CONFIGS["published"]).eval()
    network.set_schedule(torch.from_numpy(linear_betas(1000, 1e-6, 1e-2)))
    return network


PROCESSES = {"saishiki.export.apart": "of PyTorch's process", "saishiki.export.engines.worker": "of the builder"}
"""The processes that an export starts, by the module that they run."""


@dataclass
class PeakRss:
    """The largest resident sets in bytes: of all processes together, and of each kind by itself."""

    together: int = 0
    each: dict[str, int] = field(default_factory=dict)

    def watch(self, process: subprocess.Popen[bytes]) -> None:
        """Samples them until the process ends."""
        parent = psutil.Process(process.pid)
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                own = {"of the command itself": parent.memory_info().rss}
                self._add(own | {_name_of(child): child.memory_info().rss for child in parent.children(recursive=True)})
            time.sleep(RSS_INTERVAL_S)

    def _add(self, sample: Mapping[str, int]) -> None:
        self.together = max(self.together, sum(sample.values()))
        self.each |= {name: max(self.each.get(name, 0), rss) for name, rss in sample.items()}


def _name_of(child: psutil.Process) -> str:
    return next((PROCESSES[word] for word in child.cmdline() if word in PROCESSES), "of others")


def measure_export(checkpoint: Path, bundle: Path, cache: Path, *, options: Sequence[str]) -> dict[str, Any]:
    """Wall seconds and peak RSS of ``export-engines`` with these options, from a cold engine cache.

    Raises ``RuntimeError`` with its last words where it fails; it does where the parity is red.
    """
    command = [sys.executable, "-m", "saishiki.export", str(checkpoint), "-o", str(bundle), *options, "--json"]
    begin = time.perf_counter()
    environ = os.environ | {"SAISHIKI_CACHE": str(cache)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ)
    peak = PeakRss()
    watcher = threading.Thread(target=peak.watch, args=(process,))
    watcher.start()
    output, words = process.communicate()
    watcher.join()
    if process.returncode != 0:
        told = (words or output).decode(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"export-engines ended with status {process.returncode}: {' '.join(told)}")
    printed = json.loads(output)
    return {
        "seconds": round(time.perf_counter() - begin, 1),
        "peak_rss_gb": round(peak.together / 1e9, 2),
        "peak_rss_each_gb": {name: round(rss / 1e9, 2) for name, rss in peak.each.items()},
        "peak_rss_bound_gb": round(memory_bound_bytes(printed["manifest"]) / 1e9, 2),
        "verdict": printed["verdict"],
        "errors": {
            f"{row['module']} {row['precision']}": row["error"] for row in printed["manifest"]["certificate"]["rows"]
        },
        "engine_mb": {
            name: round(module["engines"][0]["file"]["bytes"] / 1e6, 1)
            for name, module in printed["manifest"]["modules"].items()
            if module["engines"]
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


def measure_animediffusion(folder: Path, targets: Sequence[str]) -> dict[str, Any]:
    """The export and the forwards."""
    network = random_network()
    save_file(network.state_dict(), folder / "full.safetensors")
    bundle, options = folder / "full.saishiki", (*OPTIONS, *targets)
    export = measure_export(folder / "full.safetensors", bundle, folder / "cache", options=options)
    return {"size": SIZE, "export": export, "forward": measure_forwards(forward_runners(network, bundle))}


def measure_colorizediffusion(generation: str, folder: Path, targets: Sequence[str]) -> dict[str, Any]:
    """The export with all modules, what its memory is bound to, and the same again."""
    checkpoint, options = folder / "full.safetensors", (*COLORIZEDIFFUSION_OPTIONS, *targets)
    write_random_checkpoint(checkpoint, CONFIGS[generation], image_encoder=True)
    first, again = (
        measure_export(checkpoint, folder / "full.saishiki", folder / "cache", options=(*options, *others))
        for others in ((), ("--overwrite",))
    )
    rerun = {name: again[name] for name in ("seconds", "peak_rss_gb")}
    return {"options": options, "export": first, "rerun": rerun}


def memory_bound_bytes(manifest: Mapping[str, Any]) -> float:
    """What the peak RSS of an export may be, by the fp16 weights of its largest module."""
    graphs = [module["graphs"].get("fp16") for module in manifest["modules"].values()]
    largest = max(graph["weights"]["bytes"] for graph in graphs if graph and graph["weights"])
    return BOUND_PER_BYTE * largest + BOUND_BYTES


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("animediffusion", *COLORIZEDIFFUSION), default="animediffusion")
    parser.add_argument("--targets", default="rtx", help="as of export-engines; default: rtx")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to work, and leave what was made")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON")
    given = parser.parse_args(arguments)
    if given.folder and not given.folder.is_dir():
        parser.error(f"no folder {given.folder}: make it first")
    with nullcontext(given.folder) if given.folder else tempfile.TemporaryDirectory() as name:
        folder, targets = Path(name), ("--targets", given.targets)
        if given.family in COLORIZEDIFFUSION:
            figures = measure_colorizediffusion(COLORIZEDIFFUSION[given.family], folder, targets)
        else:
            figures = measure_animediffusion(folder, targets)
    report({"environment": describe_machine(), "family": given.family, **figures}, given.output)


if __name__ == "__main__":
    main()
