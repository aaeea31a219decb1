"""The published strength sliders."""

import json

import numpy as np
import pytest

from saishiki.runtime.pipelines.colorizediffusion.strengths import strengths_of_blocks, strengths_of_levels
from tests.conformance import FOLDER


def test_strengths_of_levels_published():
    folder = FOLDER / "colorizediffusion-v2"
    if not folder.is_dir():
        pytest.skip(f"needs the conformance cases in {FOLDER}")
    cases = json.loads((folder / "cases.json").read_text())["cases"]
    (case,) = (case for case in cases if case["name"] == "unet_strength_levels")
    np.testing.assert_allclose(strengths_of_levels(0.9, (0.8, 0.6, 0.4)), case["params"]["reference_scales"], rtol=1e-6)


def test_strengths_of_levels():
    strengths = strengths_of_levels(2, (3, 5, 7))
    assert strengths.tolist() == [6, 6, 10, 10, 14, 14, 1, 14, 14, 14, 10, 10, 10, 1, 1, 1]
    assert strengths_of_levels(1, (1, 1, 1)).tolist() == [1] * 16


def test_strengths_of_blocks():
    sliders = [i / 16 for i in range(16)]
    assert strengths_of_blocks(sliders, published=False).tolist() == sliders
    assert strengths_of_blocks(sliders, published=True).tolist() == [*sliders[1:], 1]
