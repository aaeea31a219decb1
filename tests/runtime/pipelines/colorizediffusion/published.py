"""The published tiny checkpoints behind the runtime's pipeline: the modules that are exported, run by PyTorch."""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import nn

from saishiki.models.checkpoints import read_checkpoint
from saishiki.models.colorizediffusion.exported import exported_of, modules_of
from saishiki.models.colorizediffusion.loading import load
from saishiki.models.family import LoadOptions
from saishiki.runtime.backends.host_loop import run_loop_on_host
from saishiki.runtime.manifest import ModuleEntry
from saishiki.runtime.pipelines.colorizediffusion import GUIDANCES, MODES, ColorizeDiffusionPipeline
from saishiki.runtime.signature import Signature
from tests.conformance import FOLDER
from tests.runtime.pipelines.colorizediffusion.stand_ins import FILE, FakeBundle, bundle_of

GRAPHS = {"fp32": FILE}


@cache
def network_of(generation):
    """The tiny network of a generation."""
    checkpoint = read_checkpoint(FOLDER / f"colorizediffusion-{generation}" / "tiny.safetensors")
    return load(checkpoint, LoadOptions(head_channels=32, prediction="v")).network


@cache
def modules_by_name(generation, without_hoists=()):
    """Every module that a bundle can have."""
    options = LoadOptions(
        modes=MODES[generation], guidance=GUIDANCES, merge=True, without_hoists=without_hoists, head_channels=32
    )
    network = network_of(generation)
    return modules_of(network, exported_of(generation, options, has_image_encoder=True))


@dataclass(frozen=True)
class TorchModule:
    """A module of tensors as a module of arrays, which takes what its signature says and nothing else."""

    signature: Signature
    module: nn.Module

    def __call__(self, **inputs):
        self.signature.sizes_from_arrays(inputs)
        with torch.inference_mode():
            outputs = self.module(**{name: torch.from_numpy(array.copy()) for name, array in inputs.items()})
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
        names = [spec.name for spec in self.signature.outputs]
        return {name: tensor.numpy() for name, tensor in zip(names, outputs, strict=True)}


@dataclass
class TorchBackend:
    """Runs modules by PyTorch."""

    modules: dict
    name: str = "torch"
    default_precision: str = "fp32"

    def load(self, bundle, module, precision):
        return TorchModule(bundle.module(module).signature, self.modules[module])

    def run_loop(self, denoiser, loop, on_step):
        return run_loop_on_host(denoiser, loop, on_step)

    def close(self):
        pass


@dataclass(frozen=True)
class TinyBundle(FakeBundle):
    """With the schedule of the checkpoint."""

    def schedule_tables(self, *names):
        network = network_of(self.manifest.family.removeprefix("colorizediffusion-"))
        return {name: getattr(network, name).numpy() for name in names}


def pipeline_of(generation, *, prediction="v", without_hoists=()):
    """The runtime's pipeline over the tiny network."""
    modules = modules_by_name(generation, without_hoists)
    made = bundle_of(generation, prediction=prediction)
    entries = {name: ModuleEntry(module.signature, GRAPHS, ()) for name, module in modules.items()}
    bundle = TinyBundle(made.path, replace(made.manifest, modules=entries))
    return ColorizeDiffusionPipeline.load(bundle, TorchBackend(modules), "fp32")
