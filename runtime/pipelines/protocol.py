"""What a pipeline is: a family's modules put together into images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from saishiki.runtime.backends.protocol import OnStep
from saishiki.runtime.noise import Noise
from saishiki.runtime.pipelines.reference_cache import ReferenceCache
from saishiki.runtime.signature import Array


@dataclass(frozen=True)
class Pictures:
    """What one call colours: as many references and seeds as sketches, and the working size in px."""

    sketches: tuple[Any, ...]
    references: tuple[Any, ...]
    seeds: tuple[int, ...]
    height: int
    width: int


@dataclass(frozen=True)
class Draws:
    """The noise that a run takes for every picture: of which shape (C, H, W), and how many times behind the first."""

    shape: tuple[int, int, int]
    steps: int


class Work(Protocol):
    """The pictures of one call, prepared: they are run a part at a time."""

    @property
    def steps(self) -> int:
        """How often ``on_step`` is called in a run of one part."""
        ...

    @property
    def draws(self) -> Draws:
        """The noise to hand to :meth:`run`."""
        ...

    def run(self, part: slice, noise: Noise, on_step: OnStep) -> Array:
        """The images of some of the pictures, (b, 3, H, W) fp32 about [-1, 1]."""
        ...

    def finish(self, index: int, pixels: NDArray[Any]) -> NDArray[Any]:
        """What the caller gets for picture ``index``, (h, w, 3) uint8, from its working image (H, W, 3) uint8."""
        ...


class Pipeline(Protocol):
    """A family's modules on one backend. Thread-safe."""

    @property
    def options_type(self) -> type[Any]:
        """The family's options: a frozen dataclass of :func:`saishiki.runtime.options.option` fields."""
        ...

    @property
    def reference_cache(self) -> ReferenceCache | None:
        """What is kept of references; None where the family computes nothing from them ahead of its steps."""
        ...

    def options(self, given: Mapping[str, Any]) -> Any:
        """The options that were given, the rest as published; what the bundle cannot do is told here.

        Raises ``TypeError`` or ``ValueError`` for what the family does not have or take, ``BundleError`` for what this
        bundle was exported without.
        """
        ...

    def prepare(self, pictures: Pictures, options: Any) -> Work:
        """Reads and prepares pictures; raises ``ImageError`` for those that cannot be used."""
        ...

    def replay(self, inputs: Mapping[str, Array], settings: Mapping[str, Any], on_step: OnStep) -> Array:
        """The images (B, 3, H, W) fp32 of a recorded run, from the arrays and settings it was recorded with."""
        ...
