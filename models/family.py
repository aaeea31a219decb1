"""What a model family is: how to recognise, load, split and check it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from saishiki.models.checkpoints import Checkpoint, Shapes
from saishiki.runtime.manifest import Precision, SamplerDefaults
from saishiki.runtime.pipelines.colorizediffusion import Guidance, Mode
from saishiki.runtime.signature import Array, Profile, Signature

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class LoadOptions:
    """What a checkpoint may leave open; None takes the file's own word or the published value.

    Args:
        attention_head: how many attention heads there are (AnimeDiffusion).
        head_channels: width of an attention head of the U-Net (ColorizeDiffusion).
        prediction: what the U-Net predicts; None also measures it, where the file does not say.
        image_encoder: a file with the image encoder's weights, to use instead of any in the checkpoint.
        modes, guidance: what a bundle shall be able to do; None takes what the family does by default.
        merge: whether it shall also merge a masked picture's regions.
        without_hoists: computations to leave in the denoiser.
    """

    attention_head: int | None = None
    head_channels: int | None = None
    prediction: Literal["eps", "v"] | None = None
    image_encoder: Path | None = None
    modes: tuple[Mode, ...] | None = None
    guidance: tuple[Guidance, ...] | None = None
    merge: bool = False
    without_hoists: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecordedRun:
    """A whole run, and what the family's pipeline replays it from.

    Args:
        inputs, settings: by name, as ``replay`` of the pipeline takes them.
        states: x after every step, (S, B, ..), as the runtime's samplers have it; image: (B, 3, H, W).
    """

    inputs: Tensors
    settings: Mapping[str, Any]
    states: Tensor
    image: Tensor


Substitute = Callable[[str, nn.Module], nn.Module]
"""(a module's name, the module) -> what to run in its place."""


class LoadedModel(Protocol):
    """A network with its weights, seen as the modules an engine is made of."""

    @property
    def variant(self) -> str:
        """``published``, or ``custom`` for other widths and depths."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The config, as plain data for the manifest."""
        ...

    @property
    def notices(self) -> tuple[str, ...]:
        """What was assumed because the checkpoint does not say it, in words."""
        ...

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The fp32 modules by name; their parameters may be stored ones (:mod:`saishiki.models.streaming`)."""
        ...

    @property
    def weight_groups(self) -> Mapping[str, str]:
        """The group of every module that shares weights with others; a group's graphs share one file of weights."""
        ...

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """What goes into and comes out of each module."""
        ...

    @property
    def schedule(self) -> Mapping[str, Array]:
        """The diffusion schedule's tables by published name."""
        ...

    def probe(self, module: str, sizes: Mapping[str, int], sketch: Tensor, reference: Tensor) -> Tensors:
        """Inputs of a module as they occur in a run, at the given sizes.

        Args:
            sketch: (B, 1, H, W) and reference: (B, 3, H, W), in [-1, 1], at those sizes where they concern the module.
        """
        ...

    @property
    def prediction(self) -> Literal["eps", "v"]:
        """What the denoiser predicts: noise or velocity."""
        ...

    @property
    def runs(self) -> tuple[str, ...]:
        """The names of the runs to record, one for each way in which the network is used."""
        ...

    def record(
        self, run: str, sketch: Tensor, reference: Tensor, *, steps: int, substitute: Substitute | None = None
    ) -> RecordedRun:
        """A whole run of the reference, straight from the checkpoint's weights and buffers.

        It shares no code with the runtime, which is compared with it.

        Args:
            run: one of ``runs``.
            sketch: (B, 1, H, W) and reference: (B, 3, H, W), in [-1, 1].
            substitute: makes a stand-in for a module; None runs the published networks as a whole.
        """
        ...


def nothing_to_add(profile: Profile) -> Profile:
    """The profile itself: of a family whose modules have no sizes but those that the user chooses."""
    return profile


@dataclass(frozen=True)
class Family:
    """A model family.

    Args:
        fp32_modules: modules that are exported in fp32 only.
        options: the fields of :class:`LoadOptions` that it knows.
        complete: adds to a profile over batch, height, width and steps the other sizes of the modules' signatures, such
            as a number of tokens.
        side_px: height and width of the pictures that it is exported for where none are asked for.
        fp32_budget: the most that fp32 graphs may be off by, relative (L2), where nothing shows that errors grow.
        recorded_steps: of the runs that a certificate records; None takes the published number.
        least_psnr_db: of their images, for graphs of each precision.
    """

    name: str
    sampler: SamplerDefaults
    fp32_modules: frozenset[str]
    matches: Callable[[Shapes], bool]
    load: Callable[[Checkpoint, LoadOptions], LoadedModel]
    options: frozenset[str]
    complete: Callable[[Profile], Profile] = nothing_to_add
    side_px: int = 256
    fp32_budget: float = 2e-5
    recorded_steps: int | None = None
    least_psnr_db: Mapping[Precision, float] = field(default_factory=lambda: {"fp32": 80.0, "fp16": 45.0})

    def check_options(self, options: LoadOptions) -> None:
        """Raises ``ValueError``, naming its flag, for an option that is given and that the family does not know."""
        given = [f.name for f in fields(options) if getattr(options, f.name) != f.default]
        if unknown := [name for name in given if name not in self.options]:
            known = ", ".join(FLAGS[name] for name in FLAGS if name in self.options)
            raise ValueError(
                f"{', '.join(FLAGS[name] for name in unknown)}: not known to {self.name}, which has {known}"
            )


FLAGS: Mapping[str, str] = {
    "attention_head": "--attention-heads",
    "head_channels": "--head-channels",
    "prediction": "--prediction",
    "image_encoder": "--image-encoder",
    "modes": "--modes",
    "guidance": "--guidance",
    "merge": "--merge",
    "without_hoists": "--without-hoists",
}
"""How the command line spells the fields of :class:`LoadOptions`."""
