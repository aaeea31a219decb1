"""Convolution of NHWC images, with what lies around it: ``y = conv(norm(x), w) + residual + bias``."""

import math
from typing import Any, ClassVar

import numpy as np

from saishiki.runtime.plan.extents import Extents, Tensors
from saishiki.runtime.plan.ops.group_norm import InputNorm
from saishiki.runtime.plan.ops.op import Cost, Op, OpBackend, exact
from saishiki.runtime.signature import Array


class Convolution(Op, tag="convolution", frozen=True):
    """Summed in fp32 and rounded once.

    Args:
        x: one (B, H, W, C) buffer; with ``from_images`` one or two fp32 (B, C_i, H, W) of the interface, side by side,
            that are rounded to the weight's dtype when they are read.
        weight: (K, R, S, C), where C and K may be larger than the images' channels; what they have more is zero.
        bias: (K,) of the weights, or a hoisted (B, P) vector, of which K numbers from ``bias_offset`` on are taken;
            with several slots of guidance, so many pictures in each, its rows are taken again for every slot.
        out: (B, P, Q, K); with ``to_image`` an fp32 (B, K', P, Q) of the interface with K' <= K.
        padding: top, left, bottom, right.
        residual: (B, P, Q, K), added before the bias.
        norm: of x, rounded to x's dtype before it is padded and multiplied. No plan is exported with it:
            :func:`~saishiki.runtime.plan.fold_norms.fold_norms` puts it in where a library takes it.
    """

    x: tuple[str, ...]
    weight: str
    bias: str
    out: str
    stride: int = 1
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    residual: str | None = None
    bias_offset: int = 0
    from_images: bool = False
    to_image: bool = False
    norm: InputNorm | None = None

    backends: ClassVar[tuple[OpBackend, ...]] = ("cudnn", "triton")

    def reads(self) -> tuple[str, ...]:
        norm = self.norm.names() if self.norm else ()
        return (*self.x, self.weight, self.bias, *([self.residual] if self.residual else []), *norm)

    def writes(self) -> tuple[str, ...]:
        return (self.out,)

    def compute(self, tensors: Tensors) -> None:
        weight = tensors[self.weight]
        filters = len(weight)
        x = self._images(tensors, weight.dtype) if self.from_images else exact(tensors[self.x[0]])
        if self.norm:
            x = exact(self.norm.compute(x, tensors).astype(weight.dtype))
        y = convolve(_padded(x, weight.shape[3]), exact(weight), stride=self.stride, padding=self.padding)
        if self.residual:
            y += exact(tensors[self.residual])
        bias = exact(tensors[self.bias])[..., self.bias_offset : self.bias_offset + filters]
        y += np.tile(bias, (len(y) // len(bias), 1))[:, None, None, :] if bias.ndim == 2 else bias
        out = tensors[self.out]
        if self.to_image:
            out[:] = y.astype(weight.dtype).transpose(0, 3, 1, 2)[:, : out.shape[1]]
        else:
            out[:] = y

    def _images(self, tensors: Tensors, dtype: Any) -> Array:
        images = np.concatenate([tensors[name] for name in self.x], axis=1)
        return exact(images.astype(dtype)).transpose(0, 2, 3, 1)

    def cost(self, extents: Extents) -> Cost:
        filters, *taps, _ = extents.shape(self.weight)
        channels = sum(extents.shape(name)[1 if self.from_images else 3] for name in self.x)
        batch, *rest = extents.shape(self.out)
        pixels = math.prod(rest[1:] if self.to_image else rest[:2])
        filters = rest[0] if self.to_image else filters
        flops = 2 * batch * pixels * filters * math.prod(taps) * channels
        others = (*([self.residual] if self.residual else []), *(self.norm.names() if self.norm else ()))
        return Cost(flops, extents.nbytes(*self.x, self.weight, self.out, *others) + filters * 2)


def convolve(x: Array, weight: Array, *, stride: int, padding: tuple[int, int, int, int]) -> Array:
    """The convolution alone, tap by tap, in the dtype of its operands.

    Args:
        x: (B, H, W, C).
        weight: (K, R, S, C).

    Returns (B, P, Q, K).
    """
    top, left, bottom, right = padding
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    filters, taps_r, taps_s, channels = weight.shape
    height, width = ((size - taps) // stride + 1 for size, taps in zip(x.shape[1:3], (taps_r, taps_s), strict=True))
    y = np.zeros((len(x) * height * width, filters), x.dtype)
    for r, s in np.ndindex(taps_r, taps_s):
        seen = x[:, r : r + (height - 1) * stride + 1 : stride, s : s + (width - 1) * stride + 1 : stride]
        y += seen.reshape(-1, channels) @ weight[:, r, s].T
    return y.reshape(len(x), height, width, filters)


def _padded(x: Array, channels: int) -> Array:
    missing = channels - x.shape[3]
    return np.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing))) if missing else x
