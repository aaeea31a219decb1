"""The tiny ColorizeDiffusion checkpoints as bundles, and the runtime's pipeline on them.

One bundle per generation is exported with guidance by reference and sketch: its denoisers give the rows of every other
guidance too, so that cases of those need no denoiser of their own (:class:`RowsOfBoth`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from saishiki.export import ExportRequest, export_bundle, parse_profiles
from saishiki.models import LoadOptions
from saishiki.runtime.backends.protocol import Module
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.manifest import Precision
from saishiki.runtime.pipelines.colorizediffusion import (
    GENERATIONS,
    MODES,
    SLOTS,
    ColorizeDiffusionPipeline,
    Generation,
    Guidance,
)
from saishiki.runtime.pipelines.colorizediffusion.modules import LazyModules
from saishiki.runtime.signature import Array, Signature
from tests.conformance import FOLDER, Case
from tests.conformance_runners.backends import Name, current_backend, opened
from tests.conformance_runners.folders import folder_of

BACKGROUND = ("vanilla", "style", "background", "full")
EXPORTED: Mapping[tuple[Generation, str], LoadOptions] = {
    **{
        (generation, "main"): LoadOptions(
            prediction="v",
            modes=tuple(mode for mode in MODES[generation] if mode in BACKGROUND),
            guidance=("both",),
            merge=True,
        )
        for generation in GENERATIONS
    },
    ("v1.5", "foreground"): LoadOptions(
        prediction="v", modes=("foreground", "foreground+background"), guidance=("none",)
    ),
    ("v2", "foreground"): LoadOptions(prediction="v", modes=("foreground",), guidance=("none",)),
}
"""What is exported of each generation: foreground modes without guidance only, since no case guides them."""

ALSO_HALF = ("v2", "main")
"""The bundle that has fp16 graphs too: exports, engines and fp16 runs are tested on it."""

KEPT: Mapping[Guidance, tuple[int, ...]] = {"none": (0,), "reference": (0, 1), "sketch": (0, 2), "both": (0, 1, 2)}
"""Of the three slots, those that a guidance has."""


@cache
def request_of(generation: Generation, part: str) -> ExportRequest:
    """How a part of the tiny checkpoint's modules is exported."""
    return ExportRequest(
        checkpoint=FOLDER / f"colorizediffusion-{generation}" / "tiny.safetensors",
        output=folder_of(f"{generation}-{part}") / f"{generation}-{part}.saishiki",
        targets=(),
        profiles=parse_profiles(["128:128:192"], "1:2"),
        load=EXPORTED[generation, part],
        precisions=("fp32", "fp16") if (generation, part) == ALSO_HALF else ("fp32",),
    )


@cache
def bundle_of(generation: Generation, part: str) -> Bundle:
    """The part, exported by this process."""
    return Bundle.open(export_bundle(request_of(generation, part)).bundle)


def generation_of(case: Case) -> Generation:
    (generation,) = (name for name in GENERATIONS if case.family == f"colorizediffusion-{name}")
    return generation


@dataclass(frozen=True)
class RowsOfBoth:
    """The denoiser for both kinds of guidance as one for any: rows that are not asked for are left out."""

    module: Module
    guidance: Guidance

    @property
    def signature(self) -> Signature:
        return self.module.signature

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        batch = len(inputs["x"])
        hints = {name: array for name, array in inputs.items() if name.startswith("hint_")}
        doubled = {name: np.concatenate([array, array]) for name, array in hints.items() if len(array) == batch}
        rows = self.module(**{**inputs, **doubled})["prediction"]
        slots = rows.reshape(SLOTS["both"], batch, *rows.shape[1:])[list(KEPT[self.guidance])]
        return {"prediction": slots.reshape(-1, *rows.shape[1:])}


class ModulesForAnyGuidance(LazyModules):
    """A bundle whose denoisers stand for those of every guidance."""

    def __contains__(self, name: str) -> bool:
        return super().__contains__(_for_both(name)[0])

    def __getitem__(self, name: str) -> Module:
        stored, guidance = _for_both(name)
        module = super().__getitem__(stored)
        return module if guidance in (None, "both") else RowsOfBoth(module, guidance)


def _for_both(name: str) -> tuple[str, Guidance | None]:
    kind, _, guidance = name.rpartition("_")
    return (f"{kind}_both", guidance) if name.startswith("denoiser_") else (name, None)  # type: ignore[return-value]


def pipeline_of(
    generation: Generation, part: str = "main", prediction: str = "v", precision: Precision = "fp32"
) -> ColorizeDiffusionPipeline:
    """The runtime's pipeline on a bundle, which is told what the network predicts: the cases are of both kinds."""
    return _pipeline_on(current_backend(), generation, part, prediction, precision)


@cache
def _pipeline_on(
    backend: Name, generation: Generation, part: str, prediction: str, precision: Precision
) -> ColorizeDiffusionPipeline:
    bundle = bundle_of(generation, part)
    told = Bundle(bundle.path, replace(bundle.manifest, prediction=prediction))  # type: ignore[arg-type]
    tables = told.schedule_tables("alphas_cumprod")
    modules = LazyModules if part == "foreground" else ModulesForAnyGuidance
    return ColorizeDiffusionPipeline(modules(told, opened(told, backend), precision), tables["alphas_cumprod"])
