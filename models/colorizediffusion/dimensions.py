"""What the shapes of a checkpoint tell of its configuration, one network at a time.

Every function takes the shapes by published key. It raises ``KeyError`` for a key it cannot do without and
``ValueError`` where the shapes contradict each other; the caller says which file that is about.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import isqrt

from saishiki.models.checkpoints import Shapes, matching_numbers
from saishiki.models.colorizediffusion.config import CONFIGS, ImageEncoderConfig, LoRARank, Region, VAEConfig

UNET = "model.diffusion_model."
VAE = "first_stage_model."
IMAGE_TOWER = "cond_stage_model.visual.model."

GROUPS = 32
LEVELS, BLOCKS_PER_LEVEL = len(CONFIGS["v1"].channel_mult), CONFIGS["v1"].num_res_blocks
DECODER_BLOCKS = LEVELS * (BLOCKS_PER_LEVEL + 1)
"""The structure is the same in every checkpoint: blocks are addressed by number."""


def channel_mult(shapes: Shapes) -> tuple[int, ...]:
    """Widths of the U-Net's levels in units of the first, from its encoder: a halving layer ends a level."""
    base = model_channels(shapes)
    levels: list[list[int]] = [[]]
    for number in matching_numbers(shapes.keys(), f"{UNET}input_blocks.")[1:]:
        if f"{UNET}input_blocks.{number}.0.op.weight" in shapes:
            levels.append([])
        else:
            levels[-1].append(shapes[f"{UNET}input_blocks.{number}.0.in_layers.2.weight"][0])
    blocks = [len(level) for level in levels]
    if blocks != [BLOCKS_PER_LEVEL] * LEVELS:
        raise ValueError(f"residual blocks per level are {blocks}, expected {BLOCKS_PER_LEVEL} in each of {LEVELS}")
    return _multiples(base, [_only(level, "width of a level") for level in levels])


def model_channels(shapes: Shapes) -> int:
    """Width of the U-Net's first level."""
    return shapes[f"{UNET}input_blocks.0.0.weight"][0]


def context_dim(shapes: Shapes) -> int:
    """Width of the tokens that the U-Net attends to."""
    return shapes[f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"][1]


def lora_rank(shapes: Shapes, region: Region) -> LoRARank | None:
    """The rank of a region's LoRA, as a share of the smaller side where that fits more layers; None without any.

    A layer that has another rank than this is left for the strict loading to find.
    """
    suffix = f".lora_down_{region}.weight"
    layers = [key.removesuffix(suffix) for key in shapes if key.endswith(suffix)]
    if not layers:
        return None
    ranks = Counter(shapes[layer + suffix][0] for layer in layers)
    shares = Counter(shapes[layer + suffix][0] / min(shapes[layer + ".weight"]) for layer in layers)
    (rank, with_rank), (share, with_share) = ranks.most_common(1)[0], shares.most_common(1)[0]
    return share if with_share > with_rank else rank


def cluster_layers(shapes: Shapes) -> int:
    """Of the cluster transformer."""
    return len(matching_numbers(shapes.keys(), "transformer.layers."))


def size_width(shapes: Shapes) -> int:
    """Of the sinusoid of one side of a size embedding."""
    return shapes["bg_encoder.label_emb.0.0.weight"][1] // 2


def warp_widths(shapes: Shapes) -> tuple[int, ...]:
    """Of the queries of each warp module, deepest first."""
    numbers = matching_numbers(shapes.keys(), f"{UNET}warp_modules.")
    if numbers != list(range(DECODER_BLOCKS)):
        raise ValueError(f"warp modules are numbered {numbers}, expected all from 0 to {DECODER_BLOCKS - 1}")
    return tuple(shapes[f"{UNET}warp_modules.{number}.attn.to_q.weight"][0] for number in numbers)


def vae(shapes: Shapes, scale_factor: float) -> VAEConfig:
    """The autoencoder: widths and blocks of its encoder's levels."""
    channels = shapes[f"{VAE}encoder.conv_in.weight"][0]
    levels = matching_numbers(shapes.keys(), f"{VAE}encoder.down.")
    blocks = [matching_numbers(shapes.keys(), f"{VAE}encoder.down.{level}.block.") for level in levels]
    widths = [shapes[f"{VAE}encoder.down.{level}.block.0.conv1.weight"][0] for level in levels]
    return VAEConfig(
        channels=channels,
        channel_mult=_multiples(channels, widths),
        num_res_blocks=_only(map(len, blocks), "number of blocks of a level of the autoencoder"),
        latent_channels=shapes[f"{VAE}post_quant_conv.weight"][0],
        scale_factor=scale_factor,
    )


def image_encoder(shapes: Shapes, head_width: int) -> ImageEncoderConfig:
    """The image tower, which takes square pictures."""
    width, _, patch_size, _ = shapes[f"{IMAGE_TOWER}conv1.weight"]
    patches = shapes[f"{IMAGE_TOWER}positional_embedding"][0] - 1
    side = isqrt(max(patches, 0))
    if side < 1 or side**2 != patches:
        raise ValueError(f"{patches} patches of the image encoder's pictures make no square")
    if head_width < 1 or width % head_width:
        raise ValueError(f"heads {head_width} wide do not divide the image encoder's width of {width}")
    return ImageEncoderConfig(
        image_size=patch_size * side,
        patch_size=patch_size,
        width=width,
        layers=len(matching_numbers(shapes.keys(), f"{IMAGE_TOWER}transformer.resblocks.")),
        head_width=head_width,
        embed_dim=shapes[f"{IMAGE_TOWER}proj"][1],
    )


def _multiples(base: int, widths: Sequence[int]) -> tuple[int, ...]:
    if base < 1 or base % GROUPS or any(width < 1 or width % base for width in widths):
        raise ValueError(f"widths of the levels are {list(widths)}, expected multiples of {GROUPS}, and of {base}")
    return tuple(width // base for width in widths)


def _only(values: Iterable[int], what: str) -> int:
    distinct = sorted(set(values))
    if len(distinct) != 1:
        raise ValueError(f"more than one {what}: {distinct}")
    return distinct[0]
