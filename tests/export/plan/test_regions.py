"""Lowering of attention and projection by region."""

import numpy as np
import torch
from torch import nn

from saishiki.models.colorizediffusion.denoise import DECIDED, DECIDED_THRESHOLD
from saishiki.models.colorizediffusion.split_operators import split_attend, split_project
from saishiki.runtime.plan.ops import MaskedSplitCrossAttention, RegionOrder
from saishiki.runtime.plan.phases import split_phases

WIDTH, HEADS = 16, 2
INPUTS = {
    "x": ("batch", "tokens", str(WIDTH)),
    "k": ("batch", "6", str(WIDTH)),
    "v": ("batch", "6", str(WIDTH)),
    "mask": ("batch", "tokens"),
}
RULE = {"selection": DECIDED, "threshold": DECIDED_THRESHOLD}


class Layers(nn.Module):
    """Two layers, with a projection of its own for each region, as a U-Net has them one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(WIDTH, WIDTH) / WIDTH**0.5 for _ in range(4))

    def forward(self, x, k, v, mask):
        for fg, bg in (self.weights[:2], self.weights[2:]):
            q = split_project(x, fg, bg, mask, **RULE)
            x = x + split_attend(q, k, v, mask, heads=HEADS, merge_scale=0.0, **RULE)
        return x


class Merged(nn.Module):
    def forward(self, x, k, v, mask, share):
        return split_attend(x, k, v, mask, heads=HEADS, merge_scale=share, q_bg=x + 1, **RULE)


class Repeated(nn.Module):
    """Rows of guidance share their masks."""

    def forward(self, x, k, v, mask):
        x, k, v, mask = (torch.cat([given, given]) for given in (x, k, v, mask))
        return split_attend(x, k, v, mask, heads=HEADS, merge_scale=0.0, **RULE)


def test_an_order_is_made_once_for_all_that_share_a_mask_and_once_per_picture(lower) -> None:
    lowered = lower(Layers(), INPUTS, {"y": INPUTS["x"]})
    assert lowered.kinds == [
        "region_order",
        "split_projection",
        "masked_split_cross_attention",
        "pointwise",
        "split_projection",
        "masked_split_cross_attention",
        "pointwise",
    ]
    plan = lowered.lowered.plan
    assert plan.buffers["mask.order"].dtype == "int32"
    assert plan.buffers["mask.order"].dims == ("batch", "tokens")
    assert {op.order for op in plan.ops if "split" in op.__struct_config__.tag} == {"mask.order"}
    assert lowered.error() < 1e-5
    phases = split_phases(plan, {"x"})
    assert [type(op) for op in phases.plan.ops[: phases.constant]] == [RegionOrder]
    assert phases.kept == {"mask.order"}


def test_a_share_is_read_from_its_input(lower) -> None:
    lowered = lower(Merged(), INPUTS | {"share": ("1",)}, {"y": INPUTS["x"]})
    (op,) = (op for op in lowered.lowered.plan.ops if isinstance(op, MaskedSplitCrossAttention))
    assert op.merge_scale == "share"
    assert op.background_q is not None
    assert op.background_q.buffer != op.q.buffer
    inputs = lowered.draw()
    for share in (0.0, 0.4):
        given = inputs | {"share": np.array([share], np.float32)}
        with torch.inference_mode():
            wanted = Merged()(**{name: torch.from_numpy(array) for name, array in given.items()})
        np.testing.assert_allclose(lowered.run(given)["y"], wanted.numpy(), atol=1e-5)


def test_a_repeated_mask_is_ordered_where_it_is_repeated(lower) -> None:
    """The tokens' places in a picture are the same, but a kernel takes as many rows as there are pictures."""
    lowered = lower(Repeated(), INPUTS, {"y": ("2*batch", "tokens", str(WIDTH))})
    (order,) = (op for op in lowered.lowered.plan.ops if isinstance(op, RegionOrder))
    assert lowered.lowered.plan.buffers[order.out].dims == ("2*batch", "tokens")
    assert order.mask.shape == ("2*batch", "tokens")
    assert lowered.error() < 1e-5
