"""Tokens in the order of their regions, on the GPU or under Triton's interpreter."""

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.kernels.masked_split_cross_attention.reference import is_foreground  # noqa: E402
from saishiki.kernels.region_order import region_order, region_order_reference  # noqa: E402
from tests.kernels.drawing import MASKS, THRESHOLD, mask_of  # noqa: E402

SELECTIONS = ["foreground_above", "background_below"]

pytestmark = pytest.mark.usefixtures("nan_in_new_memory")


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("mask", MASKS)
def test_region_order(mask: str, selection: Any) -> None:
    values = mask_of(mask, 2, 1100)
    order = region_order(values, selection=selection, threshold=THRESHOLD)
    assert order.dtype == torch.int32
    assert torch.equal(order, region_order_reference(values, selection=selection, threshold=THRESHOLD))


@pytest.mark.parametrize("shape", [(1, 1), (3, 1023), (2, 1024), (1, 2049), (0, 7), (2, 0)], ids=str)
def test_region_order_of_sizes(shape: tuple[int, int]) -> None:
    values = mask_of("random", *shape)
    order = region_order(values, selection="foreground_above", threshold=THRESHOLD)
    assert torch.equal(order, region_order_reference(values, selection="foreground_above", threshold=THRESHOLD))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_reference_sorts_by_region_and_place(selection: Any) -> None:
    values = torch.tensor([[0.9, 0.5, 0.1, float("nan"), 0.7], [0.0, 0.6, 0.4, 0.5, 1.0]])
    above = [[1, 2, 3, 0, 4], [0, 2, 3, 1, 4]]
    not_below = [[2, 0, 1, 3, 4], [0, 2, 1, 3, 4]]
    expected = above if selection == "foreground_above" else not_below
    assert region_order_reference(values, selection=selection, threshold=0.5).tolist() == expected


def test_every_token_is_there_once_and_the_background_first() -> None:
    values = mask_of("random", 2, 1500)
    order = region_order(values, selection="foreground_above", threshold=THRESHOLD).long()
    assert torch.equal(order.sort(1).values.cpu(), torch.arange(1500).expand(2, 1500))
    chosen = is_foreground(values, selection="foreground_above", threshold=THRESHOLD).int()
    assert (chosen.gather(1, order).diff(dim=1) >= 0).all()


def test_a_threshold_that_is_off_is_seen() -> None:
    values = mask_of("random", 2, 300)
    order = region_order(values, selection="foreground_above", threshold=0.06)
    assert not torch.equal(order, region_order_reference(values, selection="foreground_above", threshold=THRESHOLD))


@pytest.mark.parametrize(
    ("mask", "options", "error", "message"),
    [
        (torch.zeros(4), {}, ValueError, "expected mask .B, T., got .4,."),
        (torch.zeros(2, 4, dtype=torch.float16), {}, TypeError, "expected mask in torch.float32, got torch.float16"),
        (torch.zeros(4, 2).T, {}, ValueError, "mask is not contiguous"),
        (torch.zeros(2, 4), {"selection": "blend"}, ValueError, "expected selection 'foreground_above' or"),
    ],
    ids=["rank", "dtype", "gaps", "blend"],
)
def test_region_order_refuses(mask: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        region_order(mask, **({"selection": "foreground_above"} | options))


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
def test_region_order_on_the_gpu() -> None:
    for mask in MASKS:
        values = mask_of(mask, 4, 16384)
        order = region_order(values, selection="foreground_above", threshold=THRESHOLD)
        assert torch.equal(order, region_order_reference(values, selection="foreground_above", threshold=THRESHOLD))
