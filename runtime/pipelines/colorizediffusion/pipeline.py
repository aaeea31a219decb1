"""ColorizeDiffusion at run time: conditions from the encoders, a denoising loop in latent space, the VAE's decoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saishiki.runtime.backends.protocol import Backend, DenoisingLoop, OnStep
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.manifest import Manifest, Precision
from saishiki.runtime.noise import Noise
from saishiki.runtime.options import options_from
from saishiki.runtime.pipelines.colorizediffusion.conditions import Needs, conditions_of, needs_of
from saishiki.runtime.pipelines.colorizediffusion.denoiser_inputs import DenoiserInputs, without_reference
from saishiki.runtime.pipelines.colorizediffusion.encoders import Encoders
from saishiki.runtime.pipelines.colorizediffusion.mask_networks import MaskNetworks
from saishiki.runtime.pipelines.colorizediffusion.modules import LazyModules
from saishiki.runtime.pipelines.colorizediffusion.options import ColorizeDiffusionOptions
from saishiki.runtime.pipelines.colorizediffusion.output import crop_image, remove_background
from saishiki.runtime.pipelines.colorizediffusion.preparation import Preparation
from saishiki.runtime.pipelines.colorizediffusion.replay import scenes_from_arrays
from saishiki.runtime.pipelines.colorizediffusion.scene import Scene
from saishiki.runtime.pipelines.colorizediffusion.variants import DenoiserVariant, Generation, check_mode, variant_of
from saishiki.runtime.pipelines.colorizediffusion.windows import closed_evaluations
from saishiki.runtime.pipelines.protocol import Draws, Pictures
from saishiki.runtime.pipelines.reference_cache import ReferenceCache
from saishiki.runtime.samplers import Parameterisation, Solver, solver_for
from saishiki.runtime.signature import Array

ALPHAS = "alphas_cumprod"


@dataclass(frozen=True)
class ColorizeDiffusionPipeline:
    """A bundle of any of the three generations on one backend. Thread-safe; a call depends on its arguments alone."""

    modules: LazyModules
    alphas_cumprod: Array
    reference_cache: ReferenceCache = field(default_factory=ReferenceCache)
    networks: MaskNetworks = field(default_factory=MaskNetworks)

    options_type = ColorizeDiffusionOptions

    @classmethod
    def load(cls, bundle: Bundle, backend: Backend, precision: Precision) -> "ColorizeDiffusionPipeline":
        """Reads the schedule; modules are loaded when a run first needs them."""
        return cls(LazyModules(bundle, backend, precision), bundle.schedule_tables(ALPHAS)[ALPHAS])

    @property
    def generation(self) -> Generation:
        """Which of the three networks it is."""
        return self.modules.generation

    def options(self, given: Mapping[str, Any]) -> ColorizeDiffusionOptions:
        """The family's options; see :class:`saishiki.runtime.pipelines.protocol.Pipeline`."""
        options = options_from(ColorizeDiffusionOptions, given, owner=f"ColorizeDiffusion {self.generation}")
        check_mode(self.generation, options.mode)
        _check_masks(needs_of(self.generation, options.mode), options)
        self.modules.check_mode(options.mode, self.variant(options))
        self.solver(options)
        return options

    def variant(self, options: ColorizeDiffusionOptions) -> DenoiserVariant:
        """The denoiser that the options need."""
        return variant_of(self.generation, options.mode, options.guidance, options.merge_scale > 0)

    def solver(self, options: ColorizeDiffusionOptions) -> Solver:
        """The sampler at its noise levels; raises ``ValueError`` for names and numbers of steps it does not have."""
        defaults = self._manifest.sampler
        return solver_for(
            defaults.name if options.sampler is None else options.sampler,
            scheduler=options.scheduler,
            steps=defaults.steps if options.steps is None else options.steps,
            alphas_cumprod=self.alphas_cumprod,
            how=Parameterisation(self._manifest.prediction, options.guidance_scales),
        )

    def prepare(self, pictures: Pictures, options: ColorizeDiffusionOptions) -> "ColorizeDiffusionWork":
        """Reads pictures and masks and lays the sketches on the working area."""
        needs = needs_of(self.generation, options.mode)
        has_reference = [reference is not None for reference in pictures.references]
        if options.mode != "vanilla" and not all(has_reference):
            raise ValueError(f"mode {options.mode} needs a reference; only vanilla colours without one")
        if any(has_reference):
            self.modules.check_reference()
        scenes = Preparation(pictures, options, needs, self.networks).scenes()
        return ColorizeDiffusionWork(self, options, self.solver(options), scenes)

    def replay(self, inputs: Mapping[str, Array], settings: Mapping[str, Any], on_step: OnStep) -> Array:
        """A recorded run: inputs as :func:`scenes_from_arrays` takes them, and ``start`` and ``noise``.

        settings: options by name. ``noise`` is left out where the sampler draws none.
        """
        options = options_from(ColorizeDiffusionOptions, settings, owner=f"ColorizeDiffusion {self.generation}")
        scenes = scenes_from_arrays(inputs, options, needs_of(self.generation, options.mode))
        return self.run(scenes, options, Noise(inputs["start"], inputs.get("noise")), on_step)

    def run(self, scenes: Sequence[Scene], options: ColorizeDiffusionOptions, noise: Noise, on_step: OnStep) -> Array:
        """The images, (B, 3, H, W) fp32 about [-1, 1], not clamped.

        Args:
            noise: start (B, 4, H/8, W/8) of variance 1, and steps (N, B, 4, H/8, W/8) where the sampler draws noise.
        """
        z = self.sample(scenes, options, noise, on_step)
        decode = self.modules["vae_decoder"]
        return np.concatenate([decode(z=np.ascontiguousarray(row[None]))["image"] for row in z])

    def sample(
        self, scenes: Sequence[Scene], options: ColorizeDiffusionOptions, noise: Noise, on_step: OnStep
    ) -> Array:
        """The latents of the images, (B, 4, H/8, W/8) fp32, scaled as the sampler leaves them."""
        variant, solver = self.variant(options), self.solver(options)
        denoiser = self.modules[variant.module_name]
        inputs = self._inputs(scenes, options, variant)
        constants = inputs.constants()
        closed = closed_evaluations(solver.timesteps, options, self.generation)
        loop = DenoisingLoop(
            solver=solver,
            state="x",
            x=(noise.start * np.float32(solver.start_scale)).astype(np.float32),
            constants=(constants, without_reference(constants)) if any(closed) else (constants,),
            per_step=inputs.per_step(solver.timesteps),
            noise=noise.steps,
            phases=tuple(map(int, closed)) if any(closed) else (),
        )
        return self.modules.backend.run_loop(denoiser, loop, on_step)

    def _inputs(
        self, scenes: Sequence[Scene], options: ColorizeDiffusionOptions, variant: DenoiserVariant
    ) -> DenoiserInputs:
        encoders = Encoders(self.modules, self.reference_cache)
        return DenoiserInputs(
            signature=self.modules[variant.module_name].signature,
            variant=variant,
            generation=self.generation,
            options=options,
            encoders=encoders,
            scenes=scenes,
            conditions=[conditions_of(scene, options, self.generation, encoders) for scene in scenes],
        )

    @property
    def _manifest(self) -> Manifest:
        return self.modules.bundle.manifest


@dataclass(frozen=True)
class ColorizeDiffusionWork:
    """The prepared pictures of one call."""

    pipeline: ColorizeDiffusionPipeline
    options: ColorizeDiffusionOptions
    solver: Solver
    scenes: Sequence[Scene]

    @property
    def steps(self) -> int:
        """Steps of the sampler."""
        return self.solver.steps

    @property
    def draws(self) -> Draws:
        """Noise of the latents' size, as often as the sampler draws it."""
        height, width = self.scenes[0].size
        return Draws((4, height // 8, width // 8), self.solver.noises)

    def run(self, part: slice, noise: Noise, on_step: OnStep) -> Array:
        """The images of some of the pictures, (b, 3, H, W)."""
        return self.pipeline.run(self.scenes[part], self.options, noise, on_step)

    def finish(self, index: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The whole working area, as published, or the sketch's part of it; on white where that is asked for."""
        if self.options.remove_background:
            network = self.options.reference_mask_network
            mask = self.pipeline.networks.of_picture(network, pixels, dilate=False)
            pixels = remove_background(pixels, mask, self.options.reference_threshold)
        return crop_image(pixels, self.scenes[index].box) if self.options.crop else pixels


def _check_masks(needs: Needs, options: ColorizeDiffusionOptions) -> None:
    """Raises ``ValueError`` where a mode or an option needs a mask and there is neither one nor a network for it."""
    if needs.mask and options.sketch_mask is None and options.sketch_mask_network is None:
        raise ValueError(
            f"mode {options.mode} needs to know the sketch's foreground: give sketch_mask, "
            "or an ONNX network that finds it as sketch_mask_network"
        )
    has_mask = options.reference_mask is not None or options.reference_mask_network is not None
    if needs.background and options.background is None and not has_mask:
        raise ValueError(
            f"mode {options.mode} needs to know the reference's foreground: give reference_mask, an ONNX network that "
            "finds it as reference_mask_network, or a background picture of its own as background"
        )
    if options.remove_foreground and not has_mask:
        raise ValueError(
            "remove_foreground needs a mask of the background picture: give reference_mask or reference_mask_network"
        )
    if options.remove_background and options.reference_mask_network is None:
        raise ValueError("remove_background needs a network that finds the result's foreground: reference_mask_network")
