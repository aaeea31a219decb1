"""Runs of the tiny checkpoints: what the runtime makes of them, and the published computation in PyTorch.

The published side takes every row of guidance by itself and hoists nothing.
"""

import numpy as np
import torch

from saishiki.models.colorizediffusion.conditions import prepare_conditions
from saishiki.models.colorizediffusion.given import ENHANCED, Pictures, Preparation
from saishiki.models.colorizediffusion.guided_rows import Attending, predict_rows
from saishiki.runtime.backends.protocol import no_progress
from saishiki.runtime.noise import Noise
from saishiki.runtime.options import options_from
from saishiki.runtime.pipelines.colorizediffusion import ColorizeDiffusionOptions
from saishiki.runtime.pipelines.colorizediffusion.conditions import needs_of
from saishiki.runtime.pipelines.colorizediffusion.replay import scenes_from_arrays
from saishiki.runtime.pipelines.colorizediffusion.strengths import strengths_of_levels
from tests.pictures import paint_reference
from tests.runtime.pipelines.colorizediffusion.published import network_of

SCALES = {"none": (1, 1), "reference": (4, 1), "sketch": (1, 2.5), "both": (4, 2.5)}
# Far from the defaults, so that whatever is left out shows.
CHANGED = {
    "control_scale": 0.9,
    "merge_scale": 0.25,
    "background_factor": 0.8,
    "reference_threshold": 0.6,
    "sketch_threshold": 0.2,
    "level_strengths": (0.9, 0.8, 0.7),
    "foreground_strength": 0.85,
    "background_strength": 0.75,
    "region_strengths": "named",
}


def arrays(*, pictures=1, background=False, height=64, width=128):
    """A recorded run's inputs, for pictures that all differ."""
    rng = np.random.default_rng(0)
    latent = (pictures, 4, height // 8, width // 8)
    made = {
        "sketch": np.where(rng.random((pictures, 3, height, width)) < 0.1, 1, -1).astype(np.float32),
        "reference": np.stack([paint_reference(52, 38, seed=i) for i in range(pictures)]),
        "reference_mask": rng.random((pictures, 52, 38), dtype=np.float32),
        "mask": rng.random((pictures, 1, *latent[2:]), dtype=np.float32) * 0.4,
        "start": rng.standard_normal(latent, dtype=np.float32),
    }
    made |= {f"reference_noise_{draw}": rng.standard_normal(latent, dtype=np.float32) for draw in (0, 1)}
    if background:
        made["background"] = np.stack([paint_reference(40, 70, seed=7 + i) for i in range(pictures)])
    return made


def picture_tensor(given, name, i):
    if name not in given:
        return None
    levels = torch.from_numpy(given[name][i : i + 1]).permute(0, 3, 1, 2)
    return (levels / 255 - 0.5) / 0.5


def published_conditions(generation, given, options, i):
    """The conditions of one picture, by the reference preparation."""
    pictures = Pictures(
        sketch=torch.from_numpy(given["sketch"][i : i + 1]),
        reference=picture_tensor(given, "reference", i),
        background=picture_tensor(given, "background", i),
        reference_mask=torch.from_numpy(given["reference_mask"][i : i + 1, None]),
        sketch_mask=torch.from_numpy(given["mask"][i : i + 1]),
    )
    enhanced = ENHANCED[options.mode]
    how = Preparation(
        style_enhance=enhanced.style_enhance,
        bg_enhance=enhanced.bg_enhance,
        fg_enhance=enhanced.fg_enhance,
        control_scale=options.control_scale,
        merge_scale=options.merge_scale,
        background_factor=options.background_factor,
        reference_threshold=options.reference_threshold,
        sketch_threshold=options.sketch_threshold,
    )
    noises = [torch.from_numpy(given[f"reference_noise_{draw}"][i : i + 1]) for draw in (0, 1)]
    return prepare_conditions(network_of(generation), pictures, how, noises=noises)


def published_latent(generation, given, options, solver, noise, i):
    """One picture's latent: the published U-Net on every row of guidance, in the solver's own loop."""
    how = Attending(
        strengths=strengths_of_levels(options.reference_strength, options.level_strengths).tolist(),
        fg_scale=options.foreground_strength,
        bg_scale=options.background_strength,
        merge_scale=options.merge_scale,
        threshold=options.sketch_threshold,
    )
    unet, conditions = network_of(generation).unet, published_conditions(generation, given, options, i)

    def network(x, e):
        t = torch.from_numpy(solver.timesteps[e : e + 1])
        rows = predict_rows(unet, torch.from_numpy(x), t, conditions, guidance=options.guidance, how=how)
        return rows.numpy()

    x = given["start"][i : i + 1] * np.float32(solver.start_scale)
    return solver.sample(network, x, None if noise is None else noise[:, i : i + 1])


def latents_of_both(pipeline, given, **options):
    """A pipeline's latents and the published ones."""
    chosen = options_from(ColorizeDiffusionOptions, options, owner="this")
    solver, rng = pipeline.solver(chosen), np.random.default_rng(1)
    steps = (solver.noises, *given["start"].shape)
    noise = rng.standard_normal(steps, dtype=np.float32) if solver.noises else None
    scenes = scenes_from_arrays(given, chosen, needs_of(pipeline.generation, chosen.mode))
    got = pipeline.sample(scenes, chosen, Noise(given["start"], noise), no_progress)
    with torch.inference_mode():
        rows = range(len(got))
        wanted = [published_latent(pipeline.generation, given, chosen, solver, noise, i) for i in rows]
    return got, np.concatenate(wanted)


def scales_of(guidance):
    return dict(zip(("guidance_scale", "sketch_guidance_scale"), SCALES[guidance], strict=True))
