"""The published cases of whole runs and of their conditions, as the runtime's inputs and options."""

import json

import numpy as np

from tests.conformance import FOLDER, Case

MODES = {
    (False, False, False): "vanilla",
    (True, False, False): "style",
    (False, True, False): "background",
    (True, True, False): "full",
    (False, False, True): "foreground",
    (False, True, True): "foreground+background",
}


def cases_of(generation, module):
    """The cases of one kind, by name."""
    folder = FOLDER / f"colorizediffusion-{generation}"
    entries = json.loads((folder / "cases.json").read_text())["cases"] if folder.is_dir() else []
    return {entry["name"]: Case(folder, entry) for entry in entries if entry["module"] == module}


def arrays_of(case):
    """The inputs of :meth:`ColorizeDiffusionPipeline.replay`, for as many pictures as the case has."""
    given, count = case.inputs, case.params.get("batch", 1)
    arrays = {"sketch": given["sketch"]}
    for name in ("reference", "background"):
        if name in given:
            levels = np.rint((given[name] + 1) * 127.5).astype(np.uint8)
            arrays[name] = np.ascontiguousarray(levels.transpose(0, 2, 3, 1))
    if "rmask" in given:
        arrays["reference_mask"] = given["rmask"][:, 0]
    if "smask" in given:
        arrays["mask"] = given["smask"]
    arrays |= {f"reference_noise_{draw}": given[name] for draw in (0, 1) if (name := f"vae_noise{draw}") in given}
    arrays = {name: np.repeat(array, count, axis=0) for name, array in arrays.items()}
    return arrays | ({"start": given["init_noise"]} if "init_noise" in given else {})


def settings_of(case):
    """The options that the published run was made with."""
    params = case.params
    enhanced = tuple(bool(params.get(f"{what}_enhance")) for what in ("style", "bg", "fg"))
    settings = {
        "mode": MODES[enhanced],
        "merge_scale": params["merge_scale"],
        "reference_threshold": params["mask_threshold_ref"],
        "sketch_threshold": params["mask_threshold_sketch"],
        "background_factor": params["mask_scale"],
        "control_scale": params.get("ctl_scale", params.get("control_scale")),
    }
    return settings | (_of_run(params) if case.module == "pipeline" else {})


def _of_run(params):
    strength = params["strength"]
    scales = strength["scales"] if isinstance(strength, dict) else dict.fromkeys(("encoder", "middle", "low"), strength)
    return {
        "guidance_scale": params["gs"][0],
        "sketch_guidance_scale": params["gs"][1],
        "sampler": params["sampler"],
        "scheduler": params["scheduler"],
        "steps": params["steps"],
        "level_strengths": tuple(scales.values()),
        "foreground_strength": params["ui_fg_strength"],
        "background_strength": params["ui_bg_strength"],
    }
