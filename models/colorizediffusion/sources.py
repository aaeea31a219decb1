"""Where conditions come from: each network of the preparation, applied to the pictures that were given.

Source: ``config.py`` names it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from saishiki.models.colorizediffusion.given import Pictures, Preparation
from saishiki.models.colorizediffusion.latent_encoder import Size, size_embedding
from saishiki.models.colorizediffusion.network import ColorizeDiffusion
from saishiki.models.colorizediffusion.pictures import clip_pixels, keep_background, squash
from saishiki.models.colorizediffusion.vae import VAEEncoder, sample_latent

Value = TypeVar("Value")

BLANK = -1.0
"""Of a sketch without lines: lines are bright on dark."""


@dataclass(frozen=True)
class Sources:
    """The networks at work on one picture.

    Args:
        noises: standard normal, one for each latent in the order they are sampled.

    Every method raises ``ValueError`` where it needs a picture, a mask, a noise or a network that is not there.
    """

    network: ColorizeDiffusion
    pictures: Pictures
    how: Preparation
    noises: Iterator[Tensor]

    @property
    def reference(self) -> Tensor:
        """The reference, where there must be one."""
        return self.needed(self.pictures.reference, "a reference")

    @property
    def background_or_rest(self) -> Tensor:
        """The background, or without one what is left of the reference without its foreground."""
        if self.pictures.background is not None:
            return self.pictures.background
        mask = self.needed(self.pictures.reference_mask, "a mask of the reference, or a background")
        return keep_background(self.reference, mask, self.how.reference_threshold)

    @property
    def size(self) -> Size:
        """Of the picture to generate."""
        height, width = self.pictures.sketch.shape[2:]
        return height, width

    def hints(self) -> tuple[Tensor, ...]:
        """Five, of the sketch."""
        return self.scaled_hints(self.pictures.sketch)

    def blank_hints(self) -> tuple[Tensor, ...]:
        """Five, of a sketch without lines."""
        return self.scaled_hints(torch.full_like(self.pictures.sketch, BLANK))

    def scaled_hints(self, sketch: Tensor) -> tuple[Tensor, ...]:
        """Five, times the control scale."""
        return tuple(self.how.control_scale * hint for hint in self.network.control_encoder(sketch))

    def tokens(self, image: Tensor) -> Tensor:
        """(1, T, W) of the image encoder, without the class token."""
        encoder = self.needed(self.network.cond_stage_model, "the image encoder, which was not loaded")
        tokens: Tensor = encoder(clip_pixels(image, self.network.config.image_encoder.image_size))
        return tokens[:, 1:]

    def reference_tokens_or_zeros(self) -> Tensor:
        """(1, T, W); zeros without a reference."""
        config, reference = self.network.config, self.pictures.reference
        return torch.zeros(1, config.tokens, config.context_dim) if reference is None else self.tokens(reference)

    def latent(self, image: Tensor) -> Tensor:
        """(1, C, H / 8, W / 8), sampled of the picture's posterior with the next noise."""
        mean, logvar = VAEEncoder(self.network.first_stage_model)(squash(image, self.size))
        noise = self.needed(next(self.noises, None), "one more noise")
        return sample_latent(mean, logvar, noise, scale_factor=self.network.config.vae.scale_factor)

    def style(self) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The style encoder's vectors, and the background's latent where it has a part in them."""
        background, merge = self.pictures.background, self.how.merge_scale
        own = self.style_of(self.latent(self.reference), self.reference)
        if background is None:
            return own, None
        latent = self.latent(background)
        other = self.style_of(latent, background)
        return tuple((1 - merge) * a + merge * b for a, b in zip(own, other, strict=True)), latent

    def style_of(self, latent: Tensor, image: Tensor) -> tuple[Tensor, ...]:
        """The style encoder's vectors of one picture."""
        encoder = self.needed(self.network.style_encoder, "a style encoder")
        vectors: tuple[Tensor, ...] = encoder(latent, self.tokens(image), self.size_of(image))
        return vectors

    def maps(self, latent: Tensor) -> tuple[Tensor, ...]:
        """Of the background encoder, which sees a background's own tokens unless the style is enhanced too."""
        encoder = self.needed(self.network.bg_encoder, "a background encoder")
        background = self.pictures.background
        image = self.reference if background is None else background
        seen = self.reference if self.how.style_enhance else image
        maps = encoder(latent, self.tokens(seen), self.size_of(image))
        return tuple(self.how.background_factor * tokens for tokens in maps)

    def size_of(self, image: Tensor) -> Tensor:
        """(1, 2 * size_width), the size embedding."""
        width = self.needed(self.network.config.size_width, "a size embedding")
        return size_embedding((image.shape[2], image.shape[3]), self.size, width)

    def needed(self, value: Value | None, what: str) -> Value:
        """The value, or a ``ValueError`` that says what is missing."""
        if value is None:
            raise ValueError(f"the conditions need {what}, and there is none: {self.how}")
        return value
