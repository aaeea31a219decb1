import pytest
import torch

from saishiki.models.colorizediffusion import Conditioning, Split
from saishiki.models.colorizediffusion.conditions import Conditions
from saishiki.models.colorizediffusion.guided_rows import Attending, predict_rows
from tests.models.colorizediffusion.small import small_config, small_network

NETWORK = small_network(small_config("v2"))
CONFIG = NETWORK.config
GENERATOR = torch.Generator().manual_seed(0)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR)


SKETCH = random(2, 3, 64, 64)
X, T = random(2, 4, 8, 8), torch.tensor([3.0, 17.5])
PLAIN = Conditions(
    hints=NETWORK.control_encoder(SKETCH),
    blank_hints=NETWORK.control_encoder(torch.full_like(SKETCH, -1.0)),
    context=random(2, 4, 64),
)
SIZES = [8 * 8 // 4**level for level in (3, 3, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0)]
FULL = Conditions(
    PLAIN.hints,
    PLAIN.blank_hints,
    context=random(2, 8, 64),
    mask=random(2, 1, 8, 8),
    maps=tuple(random(2, *size) for size in zip(SIZES, reversed(CONFIG.encoder_widths), strict=True)),
    style=tuple(random(2, width) for width in CONFIG.style_widths),
    lora_fg=True,
    lora_bg=True,
)
STRENGTHS = tuple(0.5 + 0.05 * i for i in range(16))
HOW = Attending(STRENGTHS, fg_scale=0.9, bg_scale=1.2, merge_scale=0.3, threshold=0.1)


def slots(guidance, conditions=PLAIN, how=HOW):
    with torch.inference_mode():
        rows = predict_rows(NETWORK.unet, X, T, conditions, guidance=guidance, how=how)
    return rows.unflatten(0, (-1, 2))


def alone(hints, context, **given):
    with torch.inference_mode():
        return NETWORK.unet(X, T, hints, context, conditioning=Conditioning(strengths=STRENGTHS, **given))


def close(got, want):
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("guidance", ["none", "reference", "sketch", "both"])
def test_rows_are_separate_calls_slot_by_slot(guidance):
    zeros = torch.zeros_like(PLAIN.context)
    expected = {
        "none": [],
        "reference": [(PLAIN.hints, zeros)],
        "sketch": [(PLAIN.blank_hints, PLAIN.context)],
        "both": [(PLAIN.hints, zeros), (PLAIN.blank_hints, PLAIN.context)],
    }[guidance]
    got = slots(guidance)
    assert len(got) == 1 + len(expected)
    close(got[0], alone(PLAIN.hints, PLAIN.context))
    for row, call in zip(got[1:], expected, strict=True):
        close(row, alone(*call))
        assert (row - got[0]).abs().max() > 1e-3


def test_rows_keep_mask_maps_and_style():
    split = Split(FULL.mask, threshold=0.1, fg_scale=0.9, bg_scale=1.2, merge_scale=0.3, lora_fg=True, lora_bg=True)
    given = {"split": split, "maps": FULL.maps, "warp_threshold": 0.1, "style": FULL.style}
    got = slots("both", FULL)
    close(got[0], alone(FULL.hints, FULL.context, **given))
    close(got[1], alone(FULL.hints, torch.zeros_like(FULL.context), **given))
    close(got[2], alone(FULL.blank_hints, FULL.context, **given))


def test_repeat_gives_all_rows_again():
    twice = FULL.repeat(2)
    assert twice.lora_fg
    for name in ("hints", "blank_hints", "maps", "style"):
        for repeated, once in zip(getattr(twice, name), getattr(FULL, name), strict=True):
            assert torch.equal(repeated, torch.cat([once, once]))
    assert torch.equal(twice.mask, torch.cat([FULL.mask, FULL.mask]))
    assert PLAIN.repeat(2).maps is None
