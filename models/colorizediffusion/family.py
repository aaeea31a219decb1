"""ColorizeDiffusion v1, v1.5 and v2 as families."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from saishiki.models.checkpoints import Checkpoint, Shapes
from saishiki.models.colorizediffusion.config import CONFIGS
from saishiki.models.colorizediffusion.denoiser import Denoiser
from saishiki.models.colorizediffusion.denoiser_probes import probe_denoiser
from saishiki.models.colorizediffusion.exported import Exported, exported_of, modules_of
from saishiki.models.colorizediffusion.interface import ExportedModule
from saishiki.models.colorizediffusion.loading import load
from saishiki.models.colorizediffusion.network import SCHEDULE_BUFFERS, ColorizeDiffusion
from saishiki.models.colorizediffusion.prediction import Prediction, find_prediction
from saishiki.models.colorizediffusion.probes import Probe
from saishiki.models.colorizediffusion.recognition import generation_of, matches
from saishiki.models.colorizediffusion.recording import Recorder
from saishiki.models.family import Family, LoadOptions, RecordedRun, Substitute, Tensors
from saishiki.runtime.manifest import SamplerDefaults
from saishiki.runtime.pipelines.colorizediffusion import Generation, Mode
from saishiki.runtime.signature import Array, Profile, Signature

SAMPLER = SamplerDefaults(name="diffuser_dpm", steps=20, eta=0.0, start="noise")
RECORDED_STEPS = 4
SIDE_PX = 512
"""The published tool's default."""
FP32_BUDGET = 2e-4
"""ONNX Runtime's norms lose digits where a picture is flat: its VAE encoder is 30 times further off than PyTorch's."""
STREAMED_BYTES = 2**30
"""Networks whose weights take more than this in their file stay there until they are needed."""


@dataclass(frozen=True)
class LoadedColorizeDiffusion:
    """A loaded network, seen as a :class:`saishiki.models.family.LoadedModel`."""

    network: ColorizeDiffusion
    exported: Exported
    prediction: Prediction
    notices: tuple[str, ...]

    @property
    def variant(self) -> str:
        """``published`` for the published widths and depths, else ``custom``."""
        return "published" if self.network.config in CONFIGS.values() else "custom"

    @property
    def config(self) -> Mapping[str, Any]:
        """The config, and what of it is exported, as plain data."""
        exported = self.exported
        return asdict(self.network.config) | {
            "modes": exported.modes,
            "guidance": exported.guidances,
            "merge": exported.merge,
            "without_hoists": exported.hoists.switched_off,
        }

    @cached_property
    def modules(self) -> Mapping[str, ExportedModule]:
        """The modules that the wanted modes need."""
        return modules_of(self.network, self.exported)

    @property
    def weight_groups(self) -> Mapping[str, str]:
        """Denoisers share nearly all their weights, context projectors those of layers without a LoRA."""
        groups = ("denoiser", "context_projector")
        return {name: group for group in groups for name in self.modules if name.startswith(group)}

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """The modules' signatures."""
        return {name: module.signature for name, module in self.modules.items()}

    @property
    def schedule(self) -> Mapping[str, Array]:
        """The twelve (T,) fp32 buffers, as stored."""
        return {name: self.network.get_buffer(name).numpy() for name in SCHEDULE_BUFFERS}

    def probe(self, module: str, sizes: Mapping[str, int], sketch: Tensor, reference: Tensor) -> Tensors:
        """Inputs of the published preparation."""
        probe, exported = Probe(self.network, sizes, sketch, reference), self.modules[module]
        if isinstance(exported, Denoiser):
            return probe_denoiser(probe, exported, self.exported.mode_of(exported.variant))
        return probe.inputs(module)

    @property
    def runs(self) -> tuple[Mode, ...]:
        """One per mode."""
        return self.exported.modes

    def record(
        self, run: str, sketch: Tensor, reference: Tensor, *, steps: int, substitute: Substitute | None = None
    ) -> RecordedRun:
        """A run of a mode with the first guidance that is exported, by the published sampler."""
        (mode,) = (mode for mode in self.runs if mode == run)
        recorder = Recorder(self.network, self.modules, self.prediction, self.exported.guidances[0])
        return recorder.record(mode, sketch, reference, steps=steps, substitute=substitute)


def _load(checkpoint: Checkpoint, options: LoadOptions) -> LoadedColorizeDiffusion:
    stored_bytes = sum(tensor.nbytes for tensor in checkpoint.layout.values())
    loaded = load(checkpoint, options, stream=stored_bytes > STREAMED_BYTES)
    network = loaded.network.requires_grad_(False)
    generation = network.config.generation
    exported = exported_of(generation, options, has_image_encoder=network.cond_stage_model is not None)
    prediction, how = find_prediction(checkpoint, options, network)
    return LoadedColorizeDiffusion(network, exported, prediction, (*loaded.notices, how))


def _matches(generation: Generation) -> Callable[[Shapes], bool]:
    return lambda shapes: matches(shapes) and generation_of(shapes.keys()) == generation


def _complete(generation: Generation) -> Callable[[Profile], Profile]:
    """Adds how many contexts lie side by side, thresholds there are, and positions the deepest level has."""
    stride = CONFIGS[generation].stride

    def at(sizes: Mapping[str, int], contexts: int) -> dict[str, int]:
        # At least one position: a profile is also made of sizes that a picture cannot have.
        positions = max(1, sizes["height"] * sizes["width"] // stride**2)
        return {**sizes, "contexts": contexts, "count": 2, "positions": positions}

    def complete(profile: Profile) -> Profile:
        most = 2 if generation == "v1.5" else 1
        return Profile(at(profile.min, 1), at(profile.opt, 1), at(profile.max, most))

    return complete


def _family(generation: Generation) -> Family:
    return Family(
        name=f"colorizediffusion-{generation}",
        sampler=SAMPLER,
        fp32_modules=frozenset({"time_projection", "threshold_embedder"}),
        matches=_matches(generation),
        load=_load,
        complete=_complete(generation),
        side_px=SIDE_PX,
        fp32_budget=FP32_BUDGET,
        recorded_steps=RECORDED_STEPS,
        least_psnr_db={"fp32": 50.0, "fp16": 38.0},
        options=frozenset(
            {"head_channels", "prediction", "image_encoder", "modes", "guidance", "merge", "without_hoists"}
        ),
    )


COLORIZEDIFFUSION: tuple[Family, ...] = tuple(_family(generation) for generation in CONFIGS)  # type: ignore[arg-type]
"""Recognising checkpoints of each generation, inferring their config from their shapes, and loading them."""
