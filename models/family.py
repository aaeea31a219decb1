"""What a model family is: how to recognise, load, split and check it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from saishiki.models.checkpoints import Checkpoint, Shapes
from saishiki.runtime.manifest import SamplerDefaults
from saishiki.runtime.signature import Array, Signature

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class LoadOptions:
    """What a checkpoint may leave open; None takes the file's own word or the published value."""

    attention_head: int | None = None


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
        """The fp32 modules by name."""
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

    def sample(
        self,
        sketch: Tensor,
        reference: Tensor,
        start: Tensor,
        noise: Tensor,
        *,
        eta: float,
        denoiser: nn.Module | None = None,
    ) -> Tensor:
        """x after every step of the published sampler, (S, B, 3, H, W), straight from the checkpoint's buffers.

        It shares no code with the runtime, which is compared with it.

        Args:
            sketch, reference, start: (B, 1, H, W), (B, 3, H, W), (B, 3, H, W); noise: (S, B, 3, H, W).
            denoiser: a stand-in for the module of that name; None runs the published network as a whole.
        """
        ...


@dataclass(frozen=True)
class Family:
    """A model family.

    Args:
        fp32_modules: modules that are exported in fp32 only.
        prediction: what the denoiser predicts.
    """

    name: str
    prediction: Literal["eps", "v"]
    sampler: SamplerDefaults
    fp32_modules: frozenset[str]
    matches: Callable[[Shapes], bool]
    load: Callable[[Checkpoint, LoadOptions], LoadedModel]
