"""Runs the ColorizeDiffusion cases about pictures and masks, which need no network, with the runtime's numpy."""

from collections.abc import Callable, Mapping

import numpy as np

from saishiki.runtime.images import uint8_from_normalized
from saishiki.runtime.pipelines.colorizediffusion.masks import mask_to_latent
from saishiki.runtime.pipelines.colorizediffusion.reference import clip_pixels
from saishiki.runtime.pipelines.colorizediffusion.sizes import size_embedding
from saishiki.runtime.pipelines.colorizediffusion.sketch import prepare_sketch
from tests.conformance import Case

Arrays = Mapping[str, np.ndarray]
Runner = Callable[[Case], Arrays]


def run_image_preprocess(case: Case) -> Arrays:
    assert case.params["size"] == 224
    return {"pixels": clip_pixels(rgb(case, "image"))}


def run_sketch_preprocess(case: Case) -> Arrays:
    placed = prepare_sketch(
        rgb(case, "sketch_rgb_u8"),
        height=case.params["height"],
        width=case.params["width"],
        mode=case.params["mode"],
    )
    return {"sketch": placed.pixels, "original_shape": np.array(placed.original_shape)}


def run_postprocess(case: Case) -> Arrays:
    return {"uint8_hwc": uint8_from_normalized(case.inputs["image"])}


def run_mask_resize(case: Case) -> Arrays:
    assert case.params["scale_factor"] == 0.125
    return {"mask": mask_to_latent(case.inputs["mask"])}


def run_ratio_embedder(case: Case) -> Arrays:
    return {name: size_embedding(*sizes) for name, sizes in case.params["sizes"].items()}


def rgb(case: Case, name: str) -> np.ndarray:
    """(H, W, 3) uint8 of a stored (1, 3, H, W): these runners start from pixels, so nothing is normalised yet."""
    (planes,) = case.inputs[name]
    if planes.dtype != np.uint8:
        planes = np.rint((planes * 0.5 + 0.5) * 255).astype(np.uint8)
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


PICTURES: Mapping[str, Runner] = {
    "image_preprocess": run_image_preprocess,
    "sketch_preprocess": run_sketch_preprocess,
    "postprocess": run_postprocess,
    "mask_resize": run_mask_resize,
    "ratio_embedder": run_ratio_embedder,
}
