"""The image encoder of every generation: OpenCLIP's ViT-H/14 (laion2b_s32b_b79k), all of its tokens.

"Reproducible scaling laws for contrastive language-image learning", Cherti et al., CVPR 2023; mlfoundations/open_clip.
The tower is open_clip's own class; the published model feeds it pictures squashed to 224 x 224, takes the final norm
and the projection of every token, and normalises nothing afterwards. Source: ``config.py`` names it.
"""

from torch import Tensor, nn

from saishiki.models.beside_cpu_torch import import_beside_cpu_torch
from saishiki.models.colorizediffusion.config import ImageEncoderConfig

MLP_RATIO = 4.0


class ImageEncoder(nn.Module):
    """pixels: (B, 3, S, S), resized and normalised -> (B, 1 + T, W): the class token, then the patches row by row.

    The parameters are ``visual.model.<name>``, where open_clip calls them ``visual.<name>``.
    """

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.visual = nn.ModuleDict({"model": vision_transformer(config)})

    def forward(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.visual["model"](pixels)
        return tokens


def vision_transformer(config: ImageEncoderConfig) -> nn.Module:
    """open_clip's ``VisionTransformer`` that gives every token, projected, instead of one for the picture.

    Raises ``ModuleNotFoundError`` that names the extra to install where open_clip is absent.
    """
    # With pool_type "none" what it pools is the whole sequence, which then meets the projection.
    transformer: nn.Module = import_beside_cpu_torch("open_clip.transformer").VisionTransformer(
        image_size=config.image_size,
        patch_size=config.patch_size,
        width=config.width,
        layers=config.layers,
        heads=config.width // config.head_width,
        mlp_ratio=MLP_RATIO,
        output_dim=config.embed_dim,
        pool_type="none",
    )
    return transformer
