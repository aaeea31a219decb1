"""Networks larger than the memory: weights that are read for one operation at a time.

A network is made on the meta device, where it takes no memory, and :func:`stream_strictly` notes of every parameter how
it is read. Within :func:`streamed_weights` the network then runs on the CPU in fp32 like any other: each operation
that is given such a parameter gets its values, which are dropped after it. A parameter may be :func:`derived` from
others, such as a weight with a LoRA merged into it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from saishiki.models.checkpoints import Checkpoint, check_fit, fp32
from saishiki.models.stored_tensors import StoredTensor, StoredTensors

_ATTRIBUTES_OF_VALUES = frozenset({"T", "mT", "H", "mH", "data"})


class StoredParameter(nn.Parameter):
    """A parameter on the meta device whose values are read when they are needed."""

    read: Callable[[], Tensor]


def stored_parameter(stored: StoredTensor) -> StoredParameter:
    """A parameter of the stored tensor's shape, fp32 whatever the dtype it is stored in."""
    parameter = StoredParameter(stored.layout.to(torch.float32), requires_grad=False)
    parameter.read = stored.read
    return parameter


def stream_strictly(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Ties the module's parameters to the checkpoint, and gives it the buffers; like ``load_strictly`` otherwise.

    Raises one ``CheckpointError`` that names every kind of disagreement.
    """
    check_fit(checkpoint, module.state_dict())
    buffers = {name for name, _ in module.named_buffers()}
    stored = checkpoint.tensors
    if not isinstance(stored, StoredTensors):
        raise TypeError(f"{checkpoint.path}: expected tensors that are still in a file, got {type(stored).__name__}")
    module.load_state_dict(
        {key: fp32(stored[key]) if key in buffers else stored_parameter(stored.entries[key]) for key in stored},
        assign=True,
    )


def derived(function: Callable[..., Tensor], *weights: Tensor) -> nn.Parameter:
    """``function(*weights)`` as a parameter: computed now, or whenever it is needed where any weight is stored.

    Args:
        function: of fp32 tensors; it is also run on the meta device, for the shape.
    """
    if not any(isinstance(weight, StoredParameter) for weight in weights):
        return nn.Parameter(function(*(weight.detach() for weight in weights)), requires_grad=False)
    layout = function(*(weight.detach().to("meta") for weight in weights))
    return stored_parameter(StoredTensor(layout, lambda: function(*map(value_of, weights))))


def value_of(weight: Tensor) -> Tensor:
    """The values of a parameter, stored or not, in fp32; no gradient flows through them."""
    return fp32(weight.read()) if isinstance(weight, StoredParameter) else weight.detach()


def streamed_weights() -> AbstractContextManager[None]:
    """Within it networks with stored parameters run; others run as ever."""
    return SubstitutedWeights(value_of, StoredParameter)


class SubstitutedWeights(TorchFunctionMode):
    """Gives every operation ``value(parameter)`` for each parameter of the given type among its arguments."""

    def __init__(self, value: Callable[..., Tensor], kind: type[nn.Parameter]) -> None:
        super().__init__()
        self._value, self._kind = value, kind

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _asks_for_shape_or_dtype(func):
            args, kwargs = tree_map_only(self._kind, self._value, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _asks_for_shape_or_dtype(func: Any) -> bool:
    """Whether ``func`` reads an attribute that is the same on the meta device."""
    if getattr(func, "__name__", "") != "__get__":
        return False
    return getattr(func.__self__, "__name__", "") not in _ATTRIBUTES_OF_VALUES
