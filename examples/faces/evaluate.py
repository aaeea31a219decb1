"""Held-out figures of a checkpoint in PyTorch fp32, with ten-step DDIM from pure noise, and the contact sheet.

python evaluate.py --checkpoint faces.safetensors --data data/heldout --sheet contact_sheet.png
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from checkpoint import CONFIG
from dataset import Batch, plain_batch, read_triples
from diffusion import run_ddim
from PIL import Image
from torch import Tensor

from saishiki.models.animediffusion import AnimeDiffusion, load
from saishiki.models.checkpoints import read_checkpoint


@torch.no_grad()
def sample(network: AnimeDiffusion, condition: Tensor, *, eta: float, seed: int) -> Tensor:
    """Ten-step DDIM from pure noise, fp32: condition (B, 4, H, W) -> (B, 3, H, W) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn((len(condition), 3, *condition.shape[2:]), generator=generator)
    return run_ddim(network, start, condition, generator, eta=eta).image.clamp(-1.0, 1.0)


def psnr_db(images: Tensor, targets: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratios of images in [-1, 1]."""
    return 10.0 * torch.log10(4.0 / (images - targets).square().mean(dim=(1, 2, 3)))


def contact_sheet(batch: Batch, results: Tensor, path: Path, *, columns: int = 2, zoom: int = 2) -> None:
    """Rows of sketch | reference | result | truth."""
    strips = torch.cat([batch.sketch.expand(-1, 3, -1, -1), batch.reference, results, batch.target], dim=3)
    pixels = ((strips + 1.0) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    rows = [np.concatenate(list(pixels[i : i + columns]), axis=1) for i in range(0, len(pixels), columns)]
    sheet = Image.fromarray(np.concatenate(rows, axis=0))
    sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST).save(path)


def evaluate(network: AnimeDiffusion, batch: Batch, *, seed: int) -> dict[float, Tensor]:
    """The sampled images by eta, 0 and 1, printing their mean figures."""
    print("| eta | PSNR mean | PSNR median | PSNR worst | images |\n|---|---|---|---|---|")
    results = {}
    for eta in (0.0, 1.0):
        chunks = batch.condition.split(32)
        results[eta] = torch.cat([sample(network, chunk, eta=eta, seed=seed + i) for i, chunk in enumerate(chunks)])
        psnr = psnr_db(results[eta], batch.target)
        row = f"{psnr.mean():.2f} dB | {psnr.median():.2f} dB | {psnr.min():.2f} dB"
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
