"""The published step as a module: the U-Net on every row of guidance, from what a denoiser without hoists is given."""

import torch
from torch import Tensor

from saishiki.models.colorizediffusion.conditions import Conditions
from saishiki.models.colorizediffusion.denoiser import denoiser_signature
from saishiki.models.colorizediffusion.guided_rows import Attending, predict_rows
from saishiki.models.colorizediffusion.hoists import PLAIN
from saishiki.models.colorizediffusion.interface import ExportedModule, Given, numbered
from saishiki.models.colorizediffusion.unet import UNet
from saishiki.runtime.pipelines.colorizediffusion import DenoiserVariant, Mode

STYLED: frozenset[Mode] = frozenset({"style", "full"})


class PublishedStep(ExportedModule):
    """``x`` (B, 4, H/8, W/8) and what conditions it -> ``prediction`` (slots * B, 4, H/8, W/8).

    Args:
        variant: what the mode needs, without sketch guidance.
    """

    def __init__(self, unet: UNet, variant: DenoiserVariant, mode: Mode) -> None:
        super().__init__(denoiser_signature(unet, variant, PLAIN))
        self.unet, self.variant, self.mode = unet, variant, mode

    def compute(self, given: Given) -> Tensor:
        hints, widths = numbered(given, "hint_"), list(self.unet.config.style_widths)
        conditions = Conditions(
            hints=hints,
            blank_hints=hints,
            context=given["context"],
            mask=given.get("mask"),
            maps=numbered(given, "map_") or None,
            style=torch.split(given["style"], widths, dim=1) if self.mode in STYLED else None,
            lora_fg=self.variant.lora_fg,
            lora_bg=self.variant.lora_bg,
        )
        return predict_rows(
            self.unet, given["x"], given["t"], conditions, guidance=self.variant.guidance, how=Attending()
        )
