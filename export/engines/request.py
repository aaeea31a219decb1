"""What the process that asks for an engine and the one that builds it say to each other, as JSON."""

from dataclasses import dataclass

from saishiki.export.engines.header import EngineHeader
from saishiki.export.engines.target import Target
from saishiki.runtime.errors import SaishikiError
from saishiki.runtime.signature import Profile, Signature

ENGINE_NAME = "engine"
ANSWER_NAME = "answer.json"

WAY_OUT = "change the graph, or leave the target out"


class EngineBuildError(SaishikiError, RuntimeError):
    """The builder refused a graph, or crashed. The message names the graph, the target and what the builder said."""


@dataclass(frozen=True)
class BuildRequest:
    """Build ``onnx`` into ``folder``. Paths are absolute; profiles are over the symbols of the signature."""

    onnx: str
    folder: str
    signature: Signature
    profiles: tuple[Profile, ...]
    target: Target


@dataclass(frozen=True)
class BuildReport:
    """How a build went, and what is in the engine.

    Args:
        layers: in the builder's plan, over all profiles; 0 where the builder printed no plan.
        attention_ops: ``Attention`` operators of the graph that compute in 16 bits.
        fused_attentions: attention kernels in the plan, over all profiles.
        activation_bytes: device memory besides the weights, of the profile that needs most.
        header: what the file says about itself, where that is known.
    """

    builder: str
    builder_version: str
    target: str
    seconds: float
    profiles: int
    layers: int
    attention_ops: int
    fused_attentions: int
    activation_bytes: int
    bytes: int
    sha256: str
    header: EngineHeader | None

    @property
    def unfused_attentions(self) -> int:
        """How many attentions of the graph are missing among the fused ones; not 0 costs speed, not correctness."""
        return max(0, self.attention_ops * self.profiles - self.fused_attentions)


@dataclass(frozen=True)
class BuildAnswer:
    """The report, or why there is none."""

    report: BuildReport | None
    error: str | None
