"""The exported tiny v2 checkpoint against the published computation: the image of every mode, guidance and sampler.

What ``pytest`` runs by itself has every sampler in every mode and every guidance in every mode; ``-m exhaustive`` runs
the other combinations of the three, and an image by the kernels of the target ``cuda``.
"""

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch

from saishiki.models.colorizediffusion.vae import VAEDecoder
from saishiki.runtime.parity import psnr_db
from saishiki.runtime.pipelines.colorizediffusion import GUIDANCES
from saishiki.runtime.samplers import SAMPLERS
from tests.conformance import FOLDER
from tests.conformance_runners.backends import running_on
from tests.conformance_runners.colorizediffusion.tiny_bundles import ALSO_HALF, pipeline_of
from tests.runtime.pipelines.colorizediffusion.published import network_of
from tests.runtime.pipelines.colorizediffusion.published_runs import arrays, latents_of_both, scales_of

CHECKPOINT = FOLDER / "colorizediffusion-v2" / "tiny.safetensors"
LEAST_PSNR_DB = {"fp32": 50.0, "fp16": 38.0}
MODES = ("vanilla", "style", "background", "full")
STEPS = 4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHECKPOINT.is_file(), reason=f"needs {CHECKPOINT}; set SAISHIKI_CONFORMANCE to its folder"),
]


def combinations():
    for (i, sampler), (j, mode), (k, guidance) in product(*map(enumerate, (SAMPLERS, MODES, GUIDANCES))):
        marks = () if (i + j) % len(GUIDANCES) == k else pytest.mark.exhaustive
        yield pytest.param(sampler, mode, guidance, id=f"{sampler}-{mode}-{guidance}", marks=marks)


@cache
def given():
    return arrays(height=128, width=128)


def images_of_both(precision, *, steps=STEPS, **options):
    """The image of the exported graphs and that of the published networks."""
    pipeline = pipeline_of(*ALSO_HALF, precision=precision)
    got, want = latents_of_both(pipeline, given(), steps=steps, **options)
    image = pipeline.modules.call("vae_decoder", z=np.ascontiguousarray(got))["image"]
    with torch.inference_mode():
        published = VAEDecoder(network_of("v2").first_stage_model)(torch.from_numpy(want)).numpy()
    return image.clip(-1, 1), published.clip(-1, 1)


@pytest.mark.parametrize("precision", LEAST_PSNR_DB)
@pytest.mark.parametrize(("sampler", "mode", "guidance"), tuple(combinations()))
def test_the_image_is_the_published_one(sampler, mode, guidance, precision):
    got, want = images_of_both(precision, sampler=sampler, mode=mode, **scales_of(guidance))
    assert np.ptp(want) > 0.5, "a picture of nothing shows nothing"
    assert psnr_db(got, want) >= LEAST_PSNR_DB[precision]


@pytest.mark.parametrize("precision", LEAST_PSNR_DB)
def test_another_guidance_is_another_image(precision):
    """The comparison is one that can fail."""
    got, _ = images_of_both(precision, mode="full", **scales_of("reference"))
    _, want = images_of_both(precision, mode="full", **scales_of("both"))
    assert psnr_db(got, want) < LEAST_PSNR_DB[precision]


@pytest.mark.parametrize("backend", ["plans", pytest.param("kernels", marks=pytest.mark.exhaustive)])
def test_the_image_of_plans_is_the_published_one(backend):
    """All modules but the vanilla denoiser; by kernels as a GPU would be given them, in Triton's interpreter."""
    with running_on(backend):
        got, want = images_of_both("fp16", steps=2, sampler="DPM++ 2M", mode="full", **scales_of("both"))
    assert psnr_db(got, want) >= LEAST_PSNR_DB["fp16"]
