"""Convolutions as cuDNN has no precompiled kernel for them, or must transpose their tensors."""

from collections.abc import Mapping
from typing import Any

from saishiki.runtime.backends.cudnn.convolution import Convolution
from saishiki.runtime.backends.cudnn.layout import Layout


class Nchw(Convolution):
    """Channels outermost."""

    def layouts(self) -> Mapping[str, Layout]:
        return {
            name: Layout(layout.dims, (c * h * w, h * w, w, 1))
            for name, layout in super().layouts().items()
            for _, c, h, w in [layout.dims]
        }


class BiasFirst(Convolution):
    """The bias before the residual."""

    def record(self, graph: Any, tensors: Mapping[str, Any]) -> Any:
        swapped = {**tensors, "residual": tensors["bias"], "bias": tensors["residual"]}
        return super().record(graph, swapped)


class BiasInFloat(Convolution):
    """A bias in fp32."""

    def record(self, graph: Any, tensors: Mapping[str, Any]) -> Any:
        import cudnn

        tensors["bias"].set_data_type(cudnn.data_type.FLOAT)
        return super().record(graph, tensors)


class BiasPerImage(Convolution):
    """A bias vector for each image of the batch."""

    def layouts(self) -> Mapping[str, Layout]:
        bias = Layout((self.batch, self.filters, 1, 1), (self.filters, 1, self.filters, self.filters))
        return {**super().layouts(), "bias": bias, "y": super().layouts()["y"]}


class SlicedInput(Convolution):
    """The first half of a tensor with twice the channels."""

    def layouts(self) -> Mapping[str, Layout]:
        layouts = dict(super().layouts())
        x = layouts["x"]
        sliced = Layout(x.dims, tuple(1 if stride == 1 else 2 * stride for stride in x.strides))
        return {**layouts, "x": sliced}
