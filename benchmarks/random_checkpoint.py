"""Writes a ColorizeDiffusion checkpoint with random weights, in the published layout and at the published size.

    python benchmarks/random_checkpoint.py v2 -o random.safetensors [--image-encoder] [--tiny] [--seed 0]

fp16, 3.5 GB for v2 without the image encoder and 4.8 GB with it; seeded, written tensor by tensor. It exports, builds
and runs like a trained one, and gives noise.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from random_weights.colorizediffusion import tiny_config, write_random_checkpoint

from saishiki.models.colorizediffusion import CONFIGS


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the file and says how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generation", choices=list(CONFIGS))
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--image-encoder", action="store_true", help="with the image encoder in the file")
    parser.add_argument("--tiny", action="store_true", help="narrow layers, for trying something out")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if not given.output.parent.is_dir():
        parser.error(f"no folder {given.output.parent}: make it first")
    config = tiny_config(given.generation) if given.tiny else CONFIGS[given.generation]
    write_random_checkpoint(given.output, config, image_encoder=given.image_encoder, seed=given.seed)
    print(f"{given.output}: {given.output.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
