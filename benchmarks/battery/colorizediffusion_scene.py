"""A step and a loop of ColorizeDiffusion v2 in full mode, with random weights: as published, and with what we save.

The network is the published size, or a tiny one for a dry run, with weights that are drawn on the device. What would
come from the encoders is random too. Guidance is that of the reference: two rows for one picture.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hoist_work.published import PublishedStep
from random_weights.colorizediffusion import scaled_linear_schedule, tiny_config
from random_weights.values import seeded_values

from battery.network import sampler_step, with_our_norms
from battery.part import Options
from saishiki.kernels import (
    masked_split_cross_attention,
    masked_split_cross_attention_reference,
    split_projection,
    split_projection_reference,
    token_order,
)
from saishiki.kernels.masked_split_cross_attention.reference import is_foreground
from saishiki.models.colorizediffusion import CONFIGS, UNet
from saishiki.models.colorizediffusion.cross_attention import resize_mask
from saishiki.models.colorizediffusion.denoise import Constants, Regions, denoise, region_queries
from saishiki.models.colorizediffusion.guidance import Hoists
from saishiki.models.colorizediffusion.guided_rows import Attending
from saishiki.models.colorizediffusion.interface import numbered
from saishiki.runtime.pipelines.colorizediffusion import Guidance, Mode, variant_of
from saishiki.runtime.samplers import Parameterisation
from saishiki.runtime.samplers.solver import Solver, solver_for

MODE: Mode = "full"
GUIDANCE: Guidance = "reference"
SCALE = 4.0
STEPS, DRY_STEPS, DRY_SIZE_PX = 20, 2, 128

Tensors = Mapping[str, Any]
Predict = Callable[[Any, int], Any]


@dataclass(frozen=True)
class Recipe:
    """What is done to the published step.

    Attributes:
        half: fp16 weights and activations; the sampler stays in fp32.
        hoisted: what does not depend on x is computed before the loop.
        rows: the row without context takes a bias, and shares what it can.
        split: attention and queries of both regions are one kernel each.
        norms: a norm and the SiLU behind it are one kernel.
        fused: the sampler's arithmetic is one kernel.
        compile_mode: of ``torch.compile``; None leaves it eager.
    """

    half: bool = False
    hoisted: bool = False
    rows: bool = False
    split: bool = False
    norms: bool = False
    fused: bool = False
    compile_mode: str | None = None


@dataclass(frozen=True)
class Scene:
    """The network, what a published step is given, and the run.

    Args:
        given: fp32, by the names of a denoiser's inputs without hoists.
    """

    unet: UNet
    given: Tensors
    solver: Solver


@dataclass(frozen=True)
class System:
    """One way to compute it.

    Args:
        predict: (x (1, 4, h, w), evaluation) -> both rows' prediction, (2, 4, h, w).
        start: x before the first step; table: of the solver, on the device.
    """

    predict: Predict
    solver: Solver
    start: Any
    table: Any
    fused: bool

    def step(self) -> Any:
        """The first prediction."""
        return self.predict(self.start * self.solver.first_input, 0)

    def sample(self) -> Any:
        """The latent at the end."""
        return self._fused() if self.fused else self._launched()

    def _launched(self) -> Any:
        return self.solver.sample(lambda x, k: self.predict(x, k).float(), self.start, None)

    def _fused(self) -> Any:
        step, x = sampler_step(self.start), self.start.clone()
        history, model_input = x.new_zeros(1, *x.shape), (self.solver.first_input * x).repeat(2, 1, 1, 1)
        for k in range(self.solver.steps):
            prediction = self.predict(model_input[: len(x)], k).contiguous()
            step(x, prediction, self.table, k, history=history, model_input=model_input)
        return x


def build_scene(options: Options, size_px: int, *, seed: int = 0) -> Scene:
    """The same weights and inputs at every call."""
    config = tiny_config("v2") if options.dry_run else CONFIGS["v2"]
    with torch.device("meta"):
        unet = UNet(config).eval()
    unet = unet.to_empty(device=options.device).requires_grad_(False)
    draw = seeded_values(seed, device=options.device)
    for name, parameter in unet.named_parameters():
        parameter.copy_(draw(name, parameter.shape))
    gammas = scaled_linear_schedule(config.timesteps)["alphas_cumprod"].numpy()
    solver = solver_for(
        "diffuser_dpm",
        scheduler="Automatic",
        steps=DRY_STEPS if options.dry_run else STEPS,
        alphas_cumprod=gammas,
        how=Parameterisation("v", guidance=(SCALE,)),
    )
    return Scene(unet, _random_inputs(unet, DRY_SIZE_PX if options.dry_run else size_px, options.device), solver)


def system(recipe: Recipe, scene: Scene, options: Options) -> System:
    """The system that a recipe makes of a scene, whose network it takes for itself."""
    network, per_step = _hoisted(recipe, scene) if recipe.hoisted else _published(recipe, scene)
    if recipe.compile_mode is not None:
        how = {"backend": "eager"} if options.dry_run else {"mode": recipe.compile_mode}
        network = torch.compile(network, **how)  # type: ignore[call-overload]

    def predict(x: Any, k: int) -> Any:
        # Rows of tensors, since a number would be compiled in, once for every step.
        return network(x, *(rows[k : k + 1] for rows in per_step))

    noise, solver = scene.given["x"], scene.solver
    table = torch.from_numpy(solver.table).to(noise.device)
    return System(predict, solver, noise * solver.start_scale, table, recipe.fused)


def _published(recipe: Recipe, scene: Scene) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The network, and what it takes besides x, a row per step."""
    unet, dtype = _prepared(recipe, scene)
    step = PublishedStep(unet, variant_of("v2", MODE, GUIDANCE, merge=False), MODE)
    given = {name: tensor.to(dtype) for name, tensor in scene.given.items() if name not in ("x", "t")}
    return lambda x, t: step(**given, x=x.to(dtype), t=t), (_timesteps(scene),)


def _hoisted(recipe: Recipe, scene: Scene) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The same, with time vectors and modulations by step."""
    t = _timesteps(scene)
    time, embedding = scene.unet.time_projections(t), scene.unet.time_embedding(t)
    modulation = scene.unet.style_modulations(scene.given["style"], embedding)[:, 0]
    warp = scene.unet.warp_projections(numbered(scene.given, "map_"))
    lists = (numbered(scene.given, "hint_"), *_context(scene), *warp)
    unet, dtype = _prepared(recipe, scene)
    hints, keys, values, warp_keys, warp_values = ([tensor.to(dtype) for tensor in tensors] for tensors in lists)
    regions, hoists = _regions(recipe, unet, scene), Hoists(guidance=recipe.rows, prefix=recipe.rows)

    def network(x: Any, time: Any, modulation: Any) -> Any:
        constants = Constants(hints, keys, values, regions, warp_keys, warp_values, modulation)
        return denoise(unet, x.to(dtype), time, constants, guidance=GUIDANCE, hoists=hoists)

    return network, (time.to(dtype), modulation.to(dtype))


def _timesteps(scene: Scene) -> Any:
    return torch.from_numpy(scene.solver.timesteps).to(scene.given["x"].device)


def _prepared(recipe: Recipe, scene: Scene) -> tuple[UNet, torch.dtype]:
    dtype = torch.float16 if recipe.half else torch.float32
    if recipe.norms:
        with_our_norms(scene.unet)
    return scene.unet.to(dtype), dtype


def _context(scene: Scene) -> tuple[list[Any], list[Any]]:
    """Sixteen keys and values, the foreground's tokens first."""
    fg, bg = scene.given["context"].chunk(2, dim=1)
    fg_keys, fg_values = scene.unet.context_projections(fg, "fg")
    bg_keys, bg_values = scene.unet.context_projections(bg, "bg")
    return _joined(fg_keys, bg_keys), _joined(fg_values, bg_values)


def _joined(fg: Any, bg: Any) -> list[Any]:
    return [torch.cat(pair, dim=1) for pair in zip(fg, bg, strict=True)]


def _regions(recipe: Recipe, unet: UNet, scene: Scene) -> Regions:
    config, threshold = unet.config, Attending().threshold
    foreground, orders = {}, {}
    for place in dict.fromkeys((*config.transformer_places, *config.decoder_places)):
        mask = resize_mask(scene.given["mask"], place.scale).flatten(1)
        chosen = is_foreground(mask, selection=unet.selection(place), threshold=threshold).float()
        # Any order is right; that of one place serves all of its size.
        foreground[place.name], orders[chosen.shape[1]] = chosen, token_order(chosen)
    on_gpu = recipe.split and scene.given["x"].is_cuda
    attend = masked_split_cross_attention if on_gpu else masked_split_cross_attention_reference
    project = split_projection if on_gpu else split_projection_reference

    return Regions(
        foreground,
        region_queries(unet.cross_attentions(), lora_fg=True, lora_bg=True),
        attend=lambda q, *rest, **how: attend(q, *rest, **how, order=orders[q.shape[1]] if recipe.split else None),
        project=lambda x, *rest, **how: project(x, *rest, **how, order=orders[x.shape[1]] if recipe.split else None),
    )


def _random_inputs(unet: UNet, size_px: int, device: str) -> dict[str, Any]:
    """What :class:`PublishedStep` takes, of one picture; about half of its mask is foreground."""
    signature = PublishedStep(unet, variant_of("v2", MODE, GUIDANCE, merge=False), MODE).signature
    sizes = {"batch": 1, "height": size_px, "width": size_px}
    generator = torch.Generator().manual_seed(1)
    drawn = {spec.name: torch.randn(spec.shape(sizes), generator=generator) for spec in signature.inputs}
    blobs = torch.randn(1, 1, 4, 4, generator=generator)
    drawn["mask"] = F.interpolate(blobs, size=drawn["mask"].shape[2:], mode="bilinear")
    return {name: tensor.to(device) for name, tensor in drawn.items()}
