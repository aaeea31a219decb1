"""Recorded runs: a mode's published run from drawn pictures, and what a bundle's pipeline replays it from."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saishiki.models.colorizediffusion.conditions import Conditions, prepare_conditions
from saishiki.models.colorizediffusion.denoiser import Denoiser
from saishiki.models.colorizediffusion.denoiser_probes import THRESHOLD, scene_from_conditions
from saishiki.models.colorizediffusion.given import ENHANCED, Pictures
from saishiki.models.colorizediffusion.guided_rows import Attending, predict_rows
from saishiki.models.colorizediffusion.network import ColorizeDiffusion
from saishiki.models.colorizediffusion.pictures import latent_mask
from saishiki.models.colorizediffusion.prediction import Prediction
from saishiki.models.colorizediffusion.probes import ellipse
from saishiki.models.colorizediffusion.reference_run import SCALES, Predict, sample
from saishiki.models.family import RecordedRun, Substitute
from saishiki.runtime.pipelines.colorizediffusion import Guidance, Mode, variant_of

SEED = 20240107
DRAWS = 2
"""How many posteriors a preparation samples at most."""


@dataclass(frozen=True)
class Recorder:
    """Records runs of one network.

    Args:
        modules: the exported ones by name; only those that are substituted are run.
    """

    network: ColorizeDiffusion
    modules: Mapping[str, nn.Module]
    prediction: Prediction
    guidance: Guidance

    def record(
        self, mode: Mode, sketch: Tensor, reference: Tensor, *, steps: int, substitute: Substitute | None
    ) -> RecordedRun:
        """A run of ``steps`` steps; sketch: (B, 1, H, W), reference: (B, 3, H, W), both in [-1, 1].

        Args:
            substitute: makes a stand-in of the denoiser and of the decoder; None runs the published networks.
        """
        given = GivenRun.drawn(self.network, sketch, reference)
        rows = [given.conditions(self.network, mode, row) for row in range(len(sketch))]
        states, z = sample(
            self._published(rows) if substitute is None else self._substituted(rows, mode, substitute),
            given.start,
            betas=self.network.get_buffer("betas"),
            prediction=self.prediction,
            guidance=self.guidance,
            steps=steps,
        )
        decode = self.modules["vae_decoder"]
        decode = decode if substitute is None else substitute("vae_decoder", decode)
        image = torch.cat([decode(z=latent) for latent in torch.split(z, 1)])
        scale, sketch_scale = SCALES[self.guidance]
        settings = {"mode": mode, "steps": steps, "guidance_scale": scale, "sketch_guidance_scale": sketch_scale}
        return RecordedRun(given.inputs(mode), settings, states, image)

    def _published(self, rows: list[Conditions]) -> Predict:
        conditions, unet = _batch(rows), self.network.unet
        how = Attending(threshold=THRESHOLD)
        return lambda x, t: predict_rows(unet, x, t, conditions, guidance=self.guidance, how=how)

    def _substituted(self, rows: list[Conditions], mode: Mode, substitute: Substitute) -> Predict:
        variant = variant_of(self.network.config.generation, mode, self.guidance, False)
        denoiser = self.modules[variant.module_name]
        assert isinstance(denoiser, Denoiser)
        stand_in = substitute(variant.module_name, denoiser)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            scene = scene_from_conditions(denoiser, x, t, rows)
            prediction: Tensor = stand_in(**scene.inputs(denoiser.signature))
            return prediction

        return predict


@dataclass(frozen=True)
class GivenRun:
    """What a recorded run is given.

    Args:
        sketch: (B, 3, H, W), bright lines on dark; reference: (B, H, W, 3) uint8; mask: (1, 1, H, W) of both.
        posteriors: whether the VAE encodes pictures; noises: (DRAWS, B, 4, H/8, W/8) of that.
        start: (B, 4, H/8, W/8).
    """

    sketch: Tensor
    reference: Tensor
    mask: Tensor
    posteriors: bool
    noises: Tensor
    start: Tensor

    @classmethod
    def drawn(cls, network: ColorizeDiffusion, sketch: Tensor, reference: Tensor) -> "GivenRun":
        """Of drawn pictures, with seeded noise."""
        batch, _, height, width = reference.shape
        stride = network.config.stride // network.config.latent_stride
        latent = batch, network.config.latent_channels, height // stride, width // stride
        generator = torch.Generator().manual_seed(SEED)
        return cls(
            sketch=-sketch.repeat(1, 3, 1, 1),
            reference=((reference + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous(),
            mask=ellipse(height, width),
            posteriors=network.style_encoder is not None,
            noises=torch.randn((DRAWS, *latent), generator=generator),
            start=torch.randn(latent, generator=generator),
        )

    def conditions(self, network: ColorizeDiffusion, mode: Mode, row: int) -> Conditions:
        """Of one picture."""
        reference = (self.reference[row : row + 1].permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        pictures = Pictures(
            sketch=self.sketch[row : row + 1],
            reference=None if network.cond_stage_model is None else reference,
            reference_mask=self.mask,
            sketch_mask=latent_mask(self.mask),
        )
        return prepare_conditions(network, pictures, ENHANCED[mode], noises=list(self.noises[:, row : row + 1]))

    def inputs(self, mode: Mode) -> Mapping[str, Tensor]:
        """By name, as a bundle's pipeline takes them: what the mode has no use for is left out."""
        batch = len(self.sketch)
        given = {"sketch": self.sketch, "reference": self.reference, "start": self.start}
        if self.posteriors and mode in ("style", "background", "full"):
            given |= {f"reference_noise_{draw}": noise for draw, noise in enumerate(self.noises)}
        if mode not in ("vanilla", "style"):
            given["mask"] = latent_mask(self.mask).repeat(batch, 1, 1, 1)
            given["reference_mask"] = self.mask[:, 0].repeat(batch, 1, 1)
        return given


def _batch(rows: list[Conditions]) -> Conditions:
    """The conditions of several pictures, one behind the other."""
    first = rows[0]

    def joined(parts: list[tuple[Tensor, ...] | None]) -> tuple[Tensor, ...]:
        return tuple(torch.cat(tensors) for tensors in zip(*(part for part in parts if part is not None), strict=True))

    return Conditions(
        hints=joined([row.hints for row in rows]),
        blank_hints=joined([row.blank_hints for row in rows]),
        context=torch.cat([row.context for row in rows]),
        mask=None if first.mask is None else torch.cat([row.mask for row in rows if row.mask is not None]),
        maps=None if first.maps is None else joined([row.maps for row in rows]),
        style=None if first.style is None else joined([row.style for row in rows]),
        lora_fg=first.lora_fg,
        lora_bg=first.lora_bg,
    )
