"""Held-out figures of a checkpoint in PyTorch fp32, with ten-step DDIM from pure noise, and the contact sheet.

python evaluate.py --checkpoint faces.safetensors --data data/heldout --sheet contact_sheet.png
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from checkpoint import CONFIG
from dataset import Batch, plain_batch, read_triples
from diffusion import run_ddim
from PIL import Image
from torch import Tensor

from saishiki.models.animediffusion import AnimeDiffusion, load
from saishiki.models.checkpoints import read_checkpoint

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al., Asilomar 2003
WINDOW = 11


@torch.no_grad()
def sample(network: AnimeDiffusion, condition: Tensor, *, eta: float, seed: int) -> Tensor:
    """Ten-step DDIM from pure noise, fp32: condition (B, 4, H, W) -> (B, 3, H, W) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn((len(condition), 3, *condition.shape[2:]), generator=generator)
    return run_ddim(network, start, condition, generator, eta=eta).image.clamp(-1.0, 1.0)


def psnr_db(images: Tensor, targets: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratios of images in [-1, 1]."""
    return 10.0 * torch.log10(4.0 / (images - targets).square().mean(dim=(1, 2, 3)))


def ms_ssim(images: Tensor, targets: Tensor) -> Tensor:
    """(B,) multi-scale SSIM of images in [-1, 1], over as many of the five scales as the 11-pixel window fits in."""
    scales = min(len(MS_SSIM_WEIGHTS), 1 + (min(images.shape[-2:]) // WINDOW).bit_length() - 1)
    weights = torch.tensor(MS_SSIM_WEIGHTS[:scales])
    product = torch.ones(len(images))
    for scale, weight in enumerate(weights / weights.sum()):
        contrast, whole = ssim_terms(images, targets)
        product = product * (whole if scale == scales - 1 else contrast).clamp(min=1e-6) ** weight
        images, targets = F.avg_pool2d(images, 2), F.avg_pool2d(targets, 2)
    return product


def ssim_terms(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The contrast-structure term and the whole SSIM, (B,) each, of images in [-1, 1] under an 11-pixel Gaussian."""
    offsets = torch.arange(WINDOW) - WINDOW // 2
    kernel = torch.exp(-0.5 * (offsets / 1.5) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, WINDOW)

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, kernel, groups=3), kernel.transpose(2, 3), groups=3)

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, covariance = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    contrast = (2 * covariance + (0.03 * 2) ** 2) / (var_a + var_b + (0.03 * 2) ** 2)
    luminance = (2 * mean_a * mean_b + (0.01 * 2) ** 2) / (mean_a**2 + mean_b**2 + (0.01 * 2) ** 2)
    return contrast.mean(dim=(1, 2, 3)), (luminance * contrast).mean(dim=(1, 2, 3))


def contact_sheet(batch: Batch, results: Tensor, path: Path, *, columns: int = 2, zoom: int = 2) -> None:
    """Rows of sketch | reference | result | truth."""
    strips = torch.cat([batch.sketch.expand(-1, 3, -1, -1), batch.reference, results, batch.target], dim=3)
    pixels = ((strips + 1.0) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    rows = [np.concatenate(list(pixels[i : i + columns]), axis=1) for i in range(0, len(pixels), columns)]
    sheet = Image.fromarray(np.concatenate(rows, axis=0))
    sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST).save(path)


def evaluate(network: AnimeDiffusion, batch: Batch, *, seed: int) -> dict[float, Tensor]:
    """The sampled images by eta, 0 and 1, printing their mean figures."""
    print("| eta | PSNR mean | PSNR median | PSNR worst | MS-SSIM | images |\n|---|---|---|---|---|---|")
    results = {}
    for eta in (0.0, 1.0):
        chunks = batch.condition.split(32)
        results[eta] = torch.cat([sample(network, chunk, eta=eta, seed=seed + i) for i, chunk in enumerate(chunks)])
        psnr, similarity = psnr_db(results[eta], batch.target), ms_ssim(results[eta], batch.target)
        row = f"{psnr.mean():.2f} dB | {psnr.median():.2f} dB | {psnr.min():.2f} dB | {similarity.mean():.4f}"
        print(f"| {eta:.0f} | {row} | {len(psnr)} |", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("faces.safetensors"))
    parser.add_argument("--data", type=Path, default=Path("data/heldout"), help="without the ending .bin")
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="where to write the contact sheet of the first 12 characters, eta 1")
    args = parser.parse_args()
    batch = plain_batch(read_triples(args.data)[: args.count])
    results = evaluate(load(read_checkpoint(args.checkpoint), CONFIG), batch, seed=args.seed)
    if args.sheet:
        first = Batch(batch.target[:12], batch.sketch[:12], batch.reference[:12])
        contact_sheet(first, results[1.0][:12], args.sheet)


if __name__ == "__main__":
    main()
