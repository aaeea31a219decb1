"""Guidance windows, as named and as published."""

import numpy as np
import pytest

from saishiki.runtime.pipelines.colorizediffusion import ColorizeDiffusionOptions
from saishiki.runtime.pipelines.colorizediffusion.windows import closed_evaluations

SHARES = np.linspace(0, 1, 11)
TIMESTEPS = (999 * (1 - SHARES)).astype(np.float32)
EPSILON = 1e-4


def closed(generation="v1", **options):
    flags = closed_evaluations(TIMESTEPS, ColorizeDiffusionOptions(**options), generation)
    return [round(float(share), 1) for share, flag in zip(SHARES, flags, strict=True) if flag]


@pytest.mark.parametrize("windows", ["named", "published"])
@pytest.mark.parametrize("generation", ["v1", "v1.5", "v2"])
def test_defaults_never_close(windows, generation):
    assert closed(generation, windows=windows) == []
    beyond = np.float32([999.01, -0.01])
    assert closed_evaluations(beyond, ColorizeDiffusionOptions(windows=windows), generation) == (False, False)


def test_windows_as_named():
    assert closed(guidance_start=0.2 - EPSILON) == [0, 0.1]
    assert closed(guidance_end=0.8 + EPSILON) == [0.9, 1]
    assert closed(no_guidance_start=0.4 - EPSILON, no_guidance_end=0.6 + EPSILON) == [0.4, 0.5, 0.6]
    assert closed("v2", guidance_start=0.2 - EPSILON) == [0, 0.1]


def test_published_windows_latch_in_v1_and_are_ignored_elsewhere():
    assert closed(guidance_start=0.2, windows="published") == [round(0.1 * i, 1) for i in range(11)]
    limits = {"no_guidance_start": 0.4 - EPSILON, "no_guidance_end": 0.5 + EPSILON, "windows": "published"}
    assert closed(**limits) == [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
    assert closed("v1.5", **limits) == closed("v2", **limits) == []
