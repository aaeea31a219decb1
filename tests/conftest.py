"""A checkpoint in the published layout, and its bundle: tiny, random, the same in every run.

Kernels run on the GPU where there is one, else under Triton's interpreter. That is chosen before Triton loads, which
every network brings along.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from saishiki.runtime.backends.cuda import driver_problem

if driver_problem() is not None:
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Several processes take tests by groups, each a file's or a mark's ``xdist_group``; slow groups come first."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    slow = {_group_of(item) for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: _group_of(item) not in slow)


def _group_of(item: pytest.Item) -> str:
    mark = item.get_closest_marker("xdist_group")
    assert mark is not None
    return str(mark.args[0])


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
