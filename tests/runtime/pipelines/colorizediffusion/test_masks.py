import numpy as np
import pytest
import torch
import torch.nn.functional as F

from saishiki.runtime.pipelines.colorizediffusion.masks import foreground_levels, mask_to_latent
from tests.conformance import FOLDER, cases_of

FACTORS = {
    "foreground_in_0": 1,
    "foreground_in_1": 0.5,
    "foreground_in_2": 0.25,
    "foreground_mid": 0.125,
    "foreground_out_3": 0.125,
    "foreground_out_2": 0.25,
    "foreground_out_1": 0.5,
    "foreground_out_0": 1,
}


def levels_by_torch(mask: np.ndarray, generation: str, threshold: float) -> dict[str, np.ndarray]:
    """Each level as the published attention decides it, on masks that torch resizes."""
    levels = {}
    for name, factor in FACTORS.items():
        level = F.interpolate(torch.from_numpy(mask), scale_factor=factor, mode="bicubic").flatten(1)
        decoder = "_out_" in name
        strict = generation == "v1.5" or (generation == "v2" and decoder)
        foreground = level > threshold if strict else ~(level < threshold)
        levels[name] = foreground.float().numpy()
    return levels


def assert_levels_equal(got: dict, want: dict) -> None:
    assert set(got) == set(want)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.mark.parametrize("generation", ["v1", "v1.5", "v2"])
@pytest.mark.parametrize("threshold", [0.05, 0.5])
def test_foreground_levels_are_the_published_decisions(generation: str, threshold: float) -> None:
    mask = np.random.default_rng(0).random((2, 1, 16, 24), dtype=np.float32)
    got = foreground_levels(mask, generation, threshold)
    assert_levels_equal(got, levels_by_torch(mask, generation, threshold))
    assert got["foreground_in_1"].shape == (2, 8 * 12)
    assert all(level.dtype == np.float32 for level in got.values())


@pytest.mark.parametrize(("generation", "encoder", "decoder"), [("v1", 1.0, 1.0), ("v1.5", 0.0, 0.0), ("v2", 1.0, 0.0)])
def test_foreground_levels_settle_ties_as_each_generation_does(generation: str, encoder: float, decoder: float) -> None:
    tie = np.full((1, 1, 16, 16), 0.5, np.float32)
    for name, level in foreground_levels(tie, generation, 0.5).items():
        assert np.all(level == (decoder if "_out_" in name else encoder)), name


def test_foreground_levels_compare_in_fp32() -> None:
    # In fp64 the fp32 number nearest to 0.05 lies above 0.05.
    tie = np.full((1, 1, 8, 8), 0.05, np.float32)
    assert not foreground_levels(tie, "v1.5", 0.05)["foreground_in_0"].any()


def test_foreground_levels_read_positions_row_by_row() -> None:
    mask = np.zeros((1, 1, 8, 16), np.float32)
    mask[0, 0, 2, 5] = 1
    (position,) = np.flatnonzero(foreground_levels(mask, "v1", 0.5)["foreground_in_0"])
    assert position == 2 * 16 + 5


@pytest.mark.parametrize("generation", ["v1", "v1.5", "v2"])
def test_foreground_levels_of_the_published_ties(generation: str) -> None:
    cases = [case for case in cases_of(f"colorizediffusion-{generation}") if "mask" in case.inputs]
    if not cases:
        pytest.skip(f"no conformance cases for {generation} in {FOLDER}; set SAISHIKI_CONFORMANCE to their folder")
    masks = [(case.inputs["mask"], case.params["mask_threshold"]) for case in cases if "mask_threshold" in case.params]
    assert any(np.any(mask == np.float32(threshold)) for mask, threshold in masks)
    for mask, threshold in masks:
        got = foreground_levels(mask, generation, threshold)
        assert_levels_equal(got, levels_by_torch(mask, generation, threshold))


def test_mask_to_latent_is_plain_bicubic_and_not_clamped() -> None:
    mask = (np.random.default_rng(0).random((2, 1, 64, 128)) > 0.5).astype(np.float32)
    got = mask_to_latent(mask)
    want = F.interpolate(torch.from_numpy(mask), scale_factor=0.125, mode="bicubic").numpy()
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert got.min() < 0
    assert got.max() > 1
    antialiased = F.interpolate(torch.from_numpy(mask), (8, 16), mode="bicubic", antialias=True).numpy()
    assert np.abs(got - antialiased).max() > 0.1


@pytest.mark.parametrize("shape", [(1, 1, 12, 8), (1, 2, 8, 8), (8, 8), (1, 1, 0, 8)], ids=str)
def test_foreground_levels_refuse_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected a latent mask \(B, 1, h, w\) with sides that are multiples of 8"):
        foreground_levels(np.zeros(shape, np.float32), "v1", 0.5)


def test_foreground_levels_refuse_another_generation() -> None:
    with pytest.raises(ValueError, match="unknown generation 'xl'"):
        foreground_levels(np.zeros((1, 1, 8, 8), np.float32), "xl", 0.5)
