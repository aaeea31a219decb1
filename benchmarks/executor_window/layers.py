"""The layers a static plan of a network consists of, found by running the network without data.

The network runs on torch's meta device, where tensors have shapes and nothing else; what it asks torch for is written
down. So the shapes are the network's own, and another network needs no list of its own either.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from battery.network import config_of
from battery.part import Options
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from saishiki.models.animediffusion import UNet

ATEN = torch.ops.aten
COUNTED = ("avg_pool2d", "scaled_dot_product", "softmax")
"""Operators that stay launches of their own: pooling, and an attention or, where torch takes it apart, its softmax.

Upsampling and concatenation happen in the norm behind them."""
HALF_BYTES = 2


@dataclass(frozen=True)
class Conv:
    """A convolution with stride 1 that keeps the image's size; ``residual`` where its result is added to another."""

    height: int
    width: int
    channels_in: int
    channels_out: int
    kernel: int
    residual: bool

    @property
    def name(self) -> str:
        shape = f"{self.height}x{self.width} {self.channels_in}->{self.channels_out} {self.kernel}x{self.kernel}"
        return f"{shape} + residual" if self.residual else shape

    @property
    def flops(self) -> int:
        taps = self.kernel**2
        return 2 * self.height * self.width * self.channels_in * self.channels_out * taps

    @property
    def padded(self) -> "Conv":
        """The same with channels rounded up to multiples of 8, which tensor cores need; the rest is zeros."""
        return replace(self, channels_in=_up(self.channels_in), channels_out=_up(self.channels_out))


def _up(channels: int) -> int:
    return -(-channels // 8) * 8


@dataclass(frozen=True)
class Norm:
    """A GroupNorm."""

    height: int
    width: int
    channels: int

    @property
    def nbytes(self) -> int:
        """Of fp16 in two launches: read for the statistics, read and written to apply them."""
        return 3 * HALF_BYTES * self.channels * self.height * self.width


@dataclass(frozen=True)
class Layers:
    """How often a network has each layer; ``others`` counts the launches that are neither of the two."""

    convs: Mapping[Conv, int]
    norms: Mapping[Norm, int]
    others: Mapping[str, int]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down convolutions, norms and the operators of ``COUNTED``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.convs: list[Conv] = []
        self.norms: list[Norm] = []
        self.others: list[str] = []
        # Tensors are kept, so that no other is given the id of one that is gone.
        self._results: dict[int, tuple[int, Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is ATEN.convolution.default:
            self._results[id(out)] = (len(self.convs), out)
            self.convs.append(_conv_of(args, out))
        elif func is ATEN.native_group_norm.default:
            self.norms.append(Norm(*_image_of(args[0]), args[0].shape[1]))
        elif func is ATEN.add.Tensor:
            self._mark_residual(args)
        else:
            self.others += [name for name in COUNTED if name in func.name()]
        return out

    def _mark_residual(self, terms: tuple[Any, ...]) -> None:
        """The later of two convolutions takes the sum, where both terms have the same shape."""
        first, second = terms[:2]
        if isinstance(second, Tensor) and first.shape == second.shape:
            found = [self._results[id(term)][0] for term in (first, second) if id(term) in self._results]
            for index in sorted(found)[-1:]:
                self.convs[index] = replace(self.convs[index], residual=True)


def _conv_of(args: tuple[Any, ...], out: Tensor) -> Conv:
    x, weight, _, stride, _, dilation, _, _, groups = args
    kernel = weight.shape[-1]
    if set(stride) | set(dilation) | {groups} != {1} or x.shape[2:] != out.shape[2:]:
        raise ValueError(
            f"a convolution of {tuple(x.shape)} by {tuple(weight.shape)} changes the size; none of these do"
        )
    return Conv(*_image_of(x), x.shape[1], weight.shape[0], kernel, residual=False)


def _image_of(x: Tensor) -> tuple[int, int]:
    """Height and width; a row of tokens is folded into a square where it can be, as it was one."""
    if x.ndim == 4:
        return x.shape[2], x.shape[3]
    side = math.isqrt(x.shape[2])
    return (side, side) if side**2 == x.shape[2] else (x.shape[2], 1)


def layers_of(run: Callable[[], Any]) -> Layers:
    """The layers of what ``run`` does on the meta device."""
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        run()
    return Layers(Counter(recorder.convs), Counter(recorder.norms), Counter(recorder.others))


def animediffusion_layers(options: Options) -> Layers:
    """Of a denoising step at the size the battery measures, with the sampler's step; the stem has 7 channels."""
    config = config_of(options)
    with torch.device("meta"):
        network = UNet(config).eval()
        x = torch.empty(1, config.channel_in, options.size_px, options.size_px)
        time = torch.empty(1, sum(block.channels_out for block in network.residual_blocks()))
        layers = layers_of(lambda: network.denoise(x, time))
    return replace(layers, others={**layers.others, "fused_sampler_step": 1})


def by_worth(layers: Layers) -> list[Conv]:
    """The distinct convolutions, those with the most work in the network first."""
    return sorted(layers.convs, key=lambda conv: -conv.flops * layers.convs[conv])


def four_shapes(layers: Layers) -> list[Conv]:
    """Of each level the 3x3 convolution with a residual that does the most work, without the residual."""
    best: dict[int, Conv] = {}
    for conv in by_worth(layers):
        if conv.kernel == 3 and conv.residual and conv.channels_in == conv.channels_out:
            best.setdefault(conv.height, conv)
    return [replace(conv, residual=False) for conv in best.values()]
