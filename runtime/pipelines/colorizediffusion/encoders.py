"""What the encoders make of pictures, as nodes of a reference cache: nothing runs before somebody asks."""

from dataclasses import dataclass

import numpy as np

from saishiki.runtime.pipelines.colorizediffusion.modules import LazyModules
from saishiki.runtime.pipelines.colorizediffusion.reference import clip_pixels, vae_pixels
from saishiki.runtime.pipelines.colorizediffusion.scene import Picture, Posterior
from saishiki.runtime.pipelines.colorizediffusion.sizes import size_embedding
from saishiki.runtime.pipelines.reference_cache import Node, ReferenceCache, Tensors, digest_of
from saishiki.runtime.signature import Array

LATENT_SCALE = 0.18215
"""What latents are multiplied by behind the encoder: published, and not in the checkpoint."""

REGION_PROJECTORS = {"base": "context_projector", "fg": "context_projector_fg", "bg": "context_projector_bg"}


@dataclass(frozen=True)
class Encoders:
    """The encoders of one bundle. Thread-safe."""

    modules: LazyModules
    cache: ReferenceCache

    def tokens(self, picture: Picture | None) -> Node:
        """``tokens`` (1, T, W): the image encoder's without its class token; all zeros without a picture."""
        if picture is None:
            return Node(("no reference",), self._no_tokens)

        def encode() -> Tensors:
            pixels = clip_pixels(picture.pixels(), self.modules.image_encoder_side)
            tokens = self.modules.call("image_encoder", pixels=pixels)["tokens"]
            return {"tokens": tokens[:, 1:]}

        return Node(("image_encoder", picture.key), encode)

    def thresholds(self, reference: float, sketch: float) -> Node:
        """``embedding`` (2, 1, W): of the reference's mask threshold, and of the sketch's."""
        values = np.array([reference, sketch], np.float32)
        return Node(
            ("threshold_embedder", reference, sketch),
            lambda: self.modules.call("threshold_embedder", thresholds=values),
        )

    def shifted(self, tokens: Node, thresholds: Node, row: int) -> Node:
        """``tokens`` with the embedding of one threshold added."""

        def add() -> Tensors:
            return {"tokens": self.cache(tokens)["tokens"] + self.cache(thresholds)["embedding"][row]}

        return Node(("shifted", tokens.key, thresholds.key, row), add)

    def clustered(self, tokens: Node) -> Node:
        """``tokens`` as the cluster transformer gives them back."""

        def cluster() -> Tensors:
            clustered = self.modules.call("cluster_transformer", tokens=self.cache(tokens)["tokens"])
            return {"tokens": clustered["clustered"]}

        return Node(("cluster_transformer", tokens.key), cluster)

    def joined(self, *parts: Node) -> Node:
        """``tokens`` of several nodes, one behind the other."""

        def join() -> Tensors:
            return {"tokens": np.concatenate([self.cache(part)["tokens"] for part in parts], axis=1)}

        return Node(("joined", *(part.key for part in parts)), join)

    def projected(self, tokens: Node, region: str) -> Node:
        """``key_00`` .. ``value_15`` (1, tokens, C_i): for ``base``, ``fg`` or ``bg`` with that LoRA merged."""
        name = REGION_PROJECTORS[region]
        return Node((name, tokens.key), lambda: self.modules.call(name, context=self.cache(tokens)["tokens"]))

    def latent(self, picture: Picture, size: tuple[int, int], posterior: Posterior, draw: int) -> Node:
        """``z`` (1, 4, H/8, W/8): a sample of the VAE's posterior for the picture squashed to ``size``."""
        height, width = size

        def sample() -> Tensors:
            moments = self.modules.call("vae_encoder", image=vae_pixels(picture.pixels(), height, width))
            noise = posterior.noise(draw, (4, height // 8, width // 8))
            deviation = np.exp(moments["logvar"] * np.float32(0.5))
            return {"z": np.float32(LATENT_SCALE) * (moments["mean"] + deviation * noise)}

        return Node(("latent", picture.key, size, posterior.key(draw)), sample)

    def background_maps(self, latent: Node, tokens: Node, sized: Picture, size: tuple[int, int]) -> Node:
        """``map_00`` .. ``map_11`` (1, h*w, C): deepest first; ``sized`` is the picture whose size is told."""
        return self._encoded("background_encoder", latent, tokens, sized, size)

    def style(self, latent: Node, tokens: Node, sized: Picture, size: tuple[int, int]) -> Node:
        """``style`` (1, widths side by side)."""
        return self._encoded("style_encoder", latent, tokens, sized, size)

    def mixed_style(self, first: Node, second: Node, share: float) -> Node:
        """``style``: ``(1 - share) first + share second``."""

        def mix() -> Tensors:
            one, other = (self.cache(node)["style"] for node in (first, second))
            return {"style": (np.float32(1 - share) * one + np.float32(share) * other).astype(np.float32)}

        return Node(("mixed style", first.key, second.key, share), mix)

    def warp(self, maps: Node, factor: float) -> Node:
        """``warp_key_00`` .. ``warp_value_11``: keys and values of the maps times the background factor."""
        return Node(
            ("warp_projector", maps.key, factor),
            lambda: self.modules.call("warp_projector", **scaled(self.cache(maps), factor)),
        )

    def hints(self, sketch: Array) -> Node:
        """``hint_0`` .. ``hint_4`` of a sketch (1, 3, H, W)."""
        return Node(("sketch_encoder", digest_of(sketch)), lambda: self.modules.call("sketch_encoder", sketch=sketch))

    def times(self, timesteps: Array) -> Node:
        """``time`` (E, P), and ``embedding`` (E, 4m) in v2."""
        t = np.ascontiguousarray(timesteps, np.float32)
        return Node(("time_projection", digest_of(t)), lambda: self.modules.call("time_projection", t=t))

    def modulation(self, style: Node, times: Node) -> Node:
        """``modulation`` (E, 1, scale and shift of the 12 decoder blocks)."""

        def project() -> Tensors:
            embedding = self.cache(times)["embedding"]
            return self.modules.call("style_projector", style=self.cache(style)["style"], embedding=embedding)

        return Node(("style_projector", style.key, times.key), project)

    def _encoded(self, module: str, latent: Node, tokens: Node, sized: Picture, size: tuple[int, int]) -> Node:
        def encode() -> Tensors:
            told = size_embedding(sized.height, sized.width, *size)
            return self.modules.call(module, z=self.cache(latent)["z"], context=self.cache(tokens)["tokens"], size=told)

        return Node((module, latent.key, tokens.key, sized.height, sized.width), encode)

    def _no_tokens(self) -> Tensors:
        return {"tokens": np.zeros((1, *self.modules.token_shape), np.float32)}


def scaled(tensors: Tensors, factor: float) -> dict[str, Array]:
    """The tensors times a number."""
    if factor == 1:
        return dict(tensors)
    return {name: tensor * np.float32(factor) for name, tensor in tensors.items()}
