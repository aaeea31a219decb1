"""Exported modules: each declares once, as its signature, what goes in and comes out."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from saishiki.models.colorizediffusion.config import ColorizeDiffusionConfig
from saishiki.runtime.signature import Signature, TensorSpec

Given = Mapping[str, Tensor]
Outputs = Tensor | tuple[Tensor, ...]


class ExportedModule(nn.Module):
    """A module that is called by its signature's names, or in their order; :meth:`compute` says what it does.

    ``torch.export`` reads the names of inputs off ``forward``, which therefore is made to fit the signature.
    """

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        self.signature = signature
        self.forward = _forward(signature, self.compute)

    def compute(self, given: Given) -> Outputs:
        """The outputs in the signature's order, alone where there is one, from the inputs by name."""
        raise NotImplementedError


def _forward(signature: Signature, compute: Callable[[Given], Outputs]) -> Callable[..., Outputs]:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = inspect.Signature([inspect.Parameter(spec.name, kind) for spec in signature.inputs])

    def forward(*inputs: Tensor, **named: Tensor) -> Outputs:
        return compute(names.bind(*inputs, **named).arguments)

    vars(forward)["__signature__"] = names
    return forward


@dataclass(frozen=True)
class Dims:
    """Symbolic dims of a network's tensors; ``rows`` is the first of all but those of one row per picture."""

    config: ColorizeDiffusionConfig
    rows: str

    def spec(self, name: str, *dims: str | int) -> TensorSpec:
        """An fp32 tensor with these dims behind its rows."""
        return TensorSpec(name, "float32", (self.rows, *map(str, dims)))

    def image(self, name: str, channels: int) -> TensorSpec:
        """A picture."""
        return self.spec(name, channels, "height", "width")

    def latent(self, name: str, channels: int, level: int = 0) -> TensorSpec:
        """An image at the latent's size, or as often halved as the level says."""
        return self.spec(name, channels, f"height/{self._side(level)}", f"width/{self._side(level)}")

    def tokens(self, name: str, level: int, *dims: int) -> TensorSpec:
        """The same as row-major tokens."""
        return self.spec(name, f"height*width/{self._side(level) ** 2}", *dims)

    @property
    def multiples(self) -> dict[str, int]:
        """What height and width must be multiples of."""
        return {"height": self.config.stride, "width": self.config.stride}

    @property
    def multiples_of_vae(self) -> dict[str, int]:
        """The same for the autoencoder alone."""
        return {"height": self._side(0), "width": self._side(0)}

    def _side(self, level: int) -> int:
        return int(self.config.stride // self.config.latent_stride * 2**level)


def numbered(given: Given, prefix: str) -> tuple[Tensor, ...]:
    """The tensors named by the prefix and a number, by number; none where there are none."""
    found = {name.removeprefix(prefix): tensor for name, tensor in given.items() if name.startswith(prefix)}
    return tuple(found[number] for number in sorted(found) if number.isdigit())
