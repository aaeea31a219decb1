"""ColorizeDiffusion v2 in full mode, 20 steps: one saving after the other, and torch.compile of both ends."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from battery.clock import captured, row_of
from battery.colorizediffusion_scene import Recipe, build_scene, system
from battery.network import prepare_inference
from battery.part import Options, Row

BUDGETS = {("step", False): 1e-3, ("step", True): 2e-2, ("loop", False): 1e-3, ("loop", True): 3e-2}
"""Relative error by subject and half, against the published computation in fp32; half alone takes a tenth of it."""


@dataclass(frozen=True)
class Entry:
    """A row: a recipe, and whether its loop is captured as one CUDA graph."""

    name: str
    recipe: Recipe
    one_graph: bool = False


PUBLISHED = Entry("published", Recipe())
ABLATION = (
    Entry("published, fp16", Recipe(half=True)),
    Entry("+ hoisted K/V, times, masks, style, warp", Recipe(half=True, hoisted=True)),
    Entry("+ guidance short-cut", Recipe(half=True, hoisted=True, rows=True)),
    Entry("+ split kernel", Recipe(half=True, hoisted=True, rows=True, split=True)),
    Entry("+ our norms", Recipe(half=True, hoisted=True, rows=True, split=True, norms=True)),
    Entry("+ fused sampler", Recipe(half=True, hoisted=True, rows=True, split=True, norms=True, fused=True)),
    Entry("+ one CUDA graph", Recipe(half=True, hoisted=True, rows=True, split=True, norms=True, fused=True), True),
    Entry("the same in fp32", Recipe(hoisted=True, rows=True, split=True, norms=True, fused=True), True),
)
"""The first adds fp16, each of the next one saving."""
AUTOTUNED = "max-autotune-no-cudagraphs"
COMPILED = (
    Entry("published, compiled, one graph", Recipe(half=True, compile_mode=AUTOTUNED), True),
    Entry("hoisted, compiled, one graph", Recipe(half=True, hoisted=True, rows=True, compile_mode=AUTOTUNED), True),
)
"""The rival to beat, without and with what takes no kernel of ours."""


def at_512(options: Options) -> Iterator[Row]:
    """The ablation at 512x512."""
    return compared(ABLATION, options, 512)


def at_768(options: Options) -> Iterator[Row]:
    """The ablation at 768x768."""
    return compared(ABLATION, options, 768)


def compiled(options: Options) -> Iterator[Row]:
    """torch.compile at 768x768, the size of the goal; a dry run traces but compiles nothing."""
    return compared(COMPILED, options, 768)


def compared(entries: Sequence[Entry], options: Options, size_px: int) -> Iterator[Row]:
    """A step and a loop of the published computation in fp32 and of every entry, each behind its error."""
    prepare_inference(options)
    published = system(PUBLISHED.recipe, build_scene(options, size_px), options)
    truths = {"step": published.step().clone(), "loop": published.sample().clone()}
    labels = {"size_px": 8 * published.start.shape[-1], "steps": published.solver.steps}
    del published
    for entry in (PUBLISHED, *entries):
        recipe = _possible(entry.recipe, options)
        shown = {"what": entry.name, "precision": "fp16" if recipe.half else "fp32", **labels}
        for subject, run in _runs(replace(entry, recipe=recipe), options, size_px).items():
            yield row_of(run, truths[subject], BUDGETS[subject, recipe.half], options, **shown, subject=subject)


def _possible(recipe: Recipe, options: Options) -> Recipe:
    # torch in fp16 on a CPU is neither right nor bearable.
    return replace(recipe, half=recipe.half and not options.dry_run)


def _runs(entry: Entry, options: Options, size_px: int) -> dict[str, Callable[[], Any]]:
    made = system(entry.recipe, build_scene(options, size_px), options)
    return {"step": made.step, "loop": captured(made.sample, options) if entry.one_graph else made.sample}
