import pytest
import torch

from saishiki.export.drawings import draw_pairs


def test_draw_pairs_is_the_same_everywhere():
    lines, colours = draw_pairs(2, 16, 24, seed=3)
    assert (lines.shape, colours.shape) == ((2, 1, 16, 24), (2, 3, 16, 24))
    again = draw_pairs(2, 16, 24, seed=3)
    assert torch.equal(lines, again[0])
    assert torch.equal(colours, again[1])
    # As drawn when this was written; another machine may differ in the last bits.
    assert colours[0, :, 3, 5].tolist() == pytest.approx([0.930463, 0.416290, -0.572626], abs=1e-5)
    assert colours[1, :, 8, 8].tolist() == pytest.approx([-0.638824, -0.616630, 0.026062], abs=1e-5)
    assert float(lines.mean()) == pytest.approx(0.729167, abs=1e-5)


def test_draw_pairs_first_images_do_not_depend_on_the_batch():
    few, many = draw_pairs(1, 16, 16, seed=3), draw_pairs(3, 16, 16, seed=3)
    assert all(bool((a[0] == b[0]).all()) for a, b in zip(few, many, strict=True))


def test_draw_pairs_every_image_and_seed_differs():
    _, colours = draw_pairs(2, 16, 16, seed=3)
    _, others = draw_pairs(1, 16, 16, seed=4)
    assert float((colours[0] - colours[1]).abs().mean()) > 0.1
    assert float((colours[0] - others[0]).abs().mean()) > 0.1


@pytest.mark.parametrize(("height", "width"), [(64, 64), (8, 8), (33, 57)])
def test_draw_pairs_is_line_art_and_colour(height, width):
    lines, colours = draw_pairs(1, height, width, seed=0)
    assert set(lines.unique().tolist()) == {-1.0, 1.0}
    assert float((lines == 1).float().mean()) > 0.5
    assert float(colours.abs().max()) <= 1.0
    assert len(colours[0].flatten(1).unique(dim=1).T) > 3
