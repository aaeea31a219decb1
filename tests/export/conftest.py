"""The smallest checkpoint, its bundle, and exports that need not trace the same graphs again."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")

from safetensors.torch import save_file  # noqa: E402

from saishiki.export import ExportRequest, ExportResult, export_bundle, parse_profiles  # noqa: E402
from saishiki.export import graphs as graphs_module  # noqa: E402
from saishiki.export.half_graph import half_graph  # noqa: E402
from saishiki.export.onnx_graph import OnnxGraph, trace, write_graph  # noqa: E402
from saishiki.export.weights_file import WeightsFile  # noqa: E402
from saishiki.models import LoadOptions  # noqa: E402
from saishiki.models.animediffusion import AnimeDiffusion, AnimeDiffusionConfig  # noqa: E402
from saishiki.runtime.schedule import linear_betas  # noqa: E402

BUILDABLE = "rtx" if find_spec("tensorrt_rtx") else "onnx"
SMALLEST = AnimeDiffusionConfig(7, 3, 64, 1, (1,), 4, False, 100)


def smallest_network() -> AnimeDiffusion:
    """One level, one block, seeded."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        network = AnimeDiffusion(SMALLEST)
    network.set_schedule(torch.from_numpy(linear_betas(SMALLEST.timesteps, 1e-6, 1e-2)))
    return network


def save_network(network: AnimeDiffusion, path: Path) -> Path:
    metadata = {"config": json.dumps({"unet": asdict(network.config)})}
    save_file(network.state_dict(), path, metadata=metadata)
    return path


@pytest.fixture(scope="session")
def smallest_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(smallest_network(), tmp_path_factory.mktemp("smallest") / "smallest.safetensors")


def request_for(checkpoint: Path, output: Path, **changes: Any) -> ExportRequest:
    """An export of 8x8 pictures without engines."""
    request = ExportRequest(
        checkpoint=checkpoint,
        output=output,
        targets=(),
        profiles=parse_profiles(["8"], "1"),
        load=LoadOptions(),
        rebuild=True,
    )
    return replace(request, **changes)


@pytest.fixture(scope="session")
def smallest_export(smallest_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """The export of the smallest checkpoint; copy the bundle before changing it."""
    return export_bundle(request_for(smallest_checkpoint, tmp_path_factory.mktemp("plain") / "plain.saishiki"))


@pytest.fixture
def smallest_bundle(smallest_export: ExportResult, tmp_path: Path) -> Path:
    """A copy, to be changed at will."""
    return Path(shutil.copytree(smallest_export.bundle, tmp_path / "copy.saishiki"))


@dataclass(frozen=True)
class Untraced:
    """What takes the place of a traced graph until it turns out that it is needed."""

    module: Any
    signature: Any
    sizes: Any
    islands: Any = None

    def traced(self, change: Callable[[Any], Any]) -> Any:
        model = trace(change(self.module), self.signature, self.sizes)
        return model if self.islands is None else half_graph(model, keep_fp32=self.islands)


@pytest.fixture
def reused_graphs(smallest_export: ExportResult, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Exports of the smallest checkpoint take their graphs from the first one, but for those that are to be changed.

    Call it with the graphs to trace anew and a function that makes another module of theirs.
    """
    source = smallest_export.bundle / "onnx"
    changes: dict[str, Callable[[Any], Any]] = {}

    def written(model: Untraced, signature: Any, path: Path, weights: WeightsFile) -> OnnxGraph:
        if path.name in changes:
            return write_graph(model.traced(changes[path.name]), signature, path, weights)
        for name in (path.name, f"{path.name}.data"):
            shutil.copyfile(source / name, path.with_name(name))
        return OnnxGraph(path, nodes=1, attentions=0)

    monkeypatch.setattr(graphs_module, "trace", Untraced)
    monkeypatch.setattr(graphs_module, "half_graph", lambda model, keep_fp32: replace(model, islands=keep_fp32))
    monkeypatch.setattr(graphs_module, "write_graph", written)
    return changes.update


def python_environment(**changes: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"} | changes


def start_export(*arguments: Any, cwd: Path, **environment: str) -> "subprocess.Popen[str]":
    """``python -m saishiki.export`` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "saishiki.export", *map(str, arguments)],
        cwd=cwd,
        env=python_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_export(arguments: Sequence[Any], *, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    process = start_export(*arguments, cwd=cwd, **environment)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@dataclass(frozen=True)
class Exported:
    """What a real command line wrote."""

    bundle: Path
    cache: Path
    out: str
    err: str


@pytest.fixture(scope="session")
def exported_by_command(smallest_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The smallest checkpoint exported by a process of its own; with an engine for sm89 where the builder is there."""
    folder, cache = tmp_path_factory.mktemp("command"), tmp_path_factory.mktemp("cache")
    arguments = [smallest_checkpoint, "--targets", BUILDABLE, "--size", "8"]
    done = run_export(arguments, cwd=folder, PYTHONHASHSEED="123", SAISHIKI_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    return Exported(folder / "smallest.saishiki", cache, done.stdout, done.stderr)
