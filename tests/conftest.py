"""A checkpoint in the published layout, and its bundle: tiny, random, the same in every run.

Kernels run on the GPU where there is one, else under Triton's interpreter. That is chosen before Triton loads, which
every network brings along.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from saishiki.runtime.backends.cuda import driver_problem

if driver_problem() is not None:
    os.environ["TRITON_INTERPRET"] = "1"


SHARING = re.compile(
    r"tests/test_conformance\.py::test_(?:exported_onnx|plans)\[(?P<family>colorizediffusion-v[\d.]+)-"
    r"|tests/export/test_colorizediffusion_(?:export|runs)\.py::"
)
"""Tests of several files, or of a part of one, that share an expensive export."""


def group_of(nodeid: str) -> str:
    """What tests of the same group share is prepared once: a group is a file but where :data:`SHARING` finds more."""
    if found := SHARING.match(nodeid):
        return f"exported {found['family'] or 'colorizediffusion-v2'}"
    return nodeid.partition("::")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups with slow tests come first."""
    slow = {group_of(item.nodeid) for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: group_of(item.nodeid) not in slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Several processes each take a group of tests at a time."""
    from xdist.scheduler import LoadScopeScheduling

    class LoadGroups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return LoadGroups(config, log)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAISHIKI_CACHE", str(tmp_path_factory.mktemp("saishiki-cache")))
        yield


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded AnimeDiffusion with random weights, as a published checkpoint would be saved."""
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")
    from safetensors.torch import save_file

    from saishiki.models.animediffusion import AnimeDiffusion, AnimeDiffusionConfig
    from saishiki.runtime.schedule import linear_betas

    config = AnimeDiffusionConfig(7, 3, 64, 1, (1, 1), 4, False, 1000)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = AnimeDiffusion(config)
    network.set_schedule(torch.from_numpy(linear_betas(config.timesteps, 1e-6, 1e-2)))
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_file(network.state_dict(), path, metadata={"config": json.dumps({"unet": asdict(config)})})
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of :func:`tiny_checkpoint`, without engines: 32x32, batches of 1 and 2. Copy it before changing it."""
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install 'saishiki[cpu]'")
    from saishiki.export import ExportRequest, export_bundle, parse_profiles
    from saishiki.models import LoadOptions

    request = ExportRequest(
        checkpoint=tiny_checkpoint,
        output=tmp_path_factory.mktemp("bundle") / "tiny.saishiki",
        targets=(),
        profiles=parse_profiles(["32"], "1:2"),
        load=LoadOptions(),
    )
    return export_bundle(request).bundle
