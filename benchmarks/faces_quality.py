"""Image quality of the demo checkpoint on held-out characters: PyTorch fp32, and every engine that runs here.

    python benchmarks/faces_quality.py [--heldout FOLDER] [--output benchmarks/results/cpu/faces_quality.json]

For every system: PSNR and MS-SSIM against the true pictures, and PSNR against PyTorch fp32 run with the same noise, of
which the mean and the worst picture are given. Ten DDIM steps, eta 1 as published, one seed per character.
``--heldout`` takes any folder that ``render.mjs --split heldout --png`` wrote.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reporting import describe_machine, report

from saishiki.export import ExportRequest, export_bundle, parse_profiles
from saishiki.export.engines import CUDA
from saishiki.models import LoadedModel, LoadOptions, read_checkpoint, recognize
from saishiki.models.beside_cpu_torch import import_beside_cpu_torch
from saishiki.runtime.backends import AUTO, open_backend, why_unavailable
from saishiki.runtime.backends.protocol import no_progress
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.images import normalized_from_uint8, read_image, uint8_from_normalized
from saishiki.runtime.noise import Noise, draw_noise
from saishiki.runtime.parity import psnr_db
from saishiki.runtime.pipelines import AnimeDiffusionPipeline, Sampling
from saishiki.runtime.preparation import prepare
from saishiki.runtime.signature import Array

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "examples" / "faces" / "faces.safetensors"
SIZE, STEPS, ETA, BATCH = 64, 10, 1.0, 8
# Three of the five scales of Wang et al. (Asilomar 2003), renormalized: a fourth does not fit 64 px.
MS_SSIM_BETAS = (0.0448, 0.2856, 0.3001)

Colour = Callable[[Array, Array, Noise], Array]


def read_heldout(folder: Path) -> tuple[Array, Array, Array]:
    """Sketches (N, 1, H, W), references and truths (N, 3, H, W), fp32 in [-1, 1], and nothing else of the folder."""
    names = sorted(path.name.removesuffix("_sketch.png") for path in folder.glob("*_sketch.png"))
    pairs = [
        prepare(folder / f"{name}_sketch.png", folder / f"{name}_reference.png", height=SIZE, width=SIZE)
        for name in names
    ]
    truths = [normalized_from_uint8(read_image(folder / f"{name}_truth.png")).transpose(2, 0, 1) for name in names]
    return np.stack([p.sketch for p in pairs]), np.stack([p.reference for p in pairs]), np.stack(truths)


def torch_system(model: LoadedModel) -> Colour:
    """The published network and sampler in PyTorch fp32."""

    @torch.inference_mode()
    def colour(sketch: Array, reference: Array, noise: Noise) -> Array:
        assert noise.steps is not None
        tensors = [torch.from_numpy(array) for array in (sketch, reference, noise.start, noise.steps)]
        images: Array = model.sample(*tensors, eta=ETA)[-1].numpy()
        return images

    return colour


def bundle_systems(bundle: Bundle, *, plans: bool) -> dict[str, Colour]:
    """The exported network: in both precisions on every backend that works here, and if asked its plans in numpy."""
    systems = {}
    for name in AUTO:
        if why_unavailable(name) is None:
            for precision in ("fp32", "fp16"):
                systems[f"{name} {precision}"] = _pipeline_system(bundle, name, precision)
    if plans:
        systems["cuda-reference fp16"] = _pipeline_system(bundle, "cuda-reference", "fp16")
    return systems


def _pipeline_system(bundle: Bundle, name: str, precision: Any) -> Colour:
    pipeline = AnimeDiffusionPipeline.load(bundle, open_backend(bundle, name), precision)
    sampling = Sampling(steps=STEPS, eta=ETA, start="noise")
    return lambda sketch, reference, noise: pipeline(sketch, reference, sampling, noise, no_progress)


def colour_all(colour: Colour, sketches: Array, references: Array) -> Array:
    """The coloured pictures, (N, 3, H, W) clipped to [-1, 1]; character i gets seed i."""
    images = []
    for first in range(0, len(sketches), BATCH):
        part = slice(first, first + BATCH)
        seeds = range(first, first + len(sketches[part]))
        noise = draw_noise(tuple(seeds), (3, SIZE, SIZE), steps=STEPS)
        images.append(colour(sketches[part], references[part], noise))
    return np.concatenate(images).clip(-1, 1)


def figures(images: Array, truths: Array, fp32: Array) -> Mapping[str, Any]:
    """PSNR and MS-SSIM against the truth, PSNR and 8-bit levels against PyTorch fp32."""
    to_truth = [psnr_db(image, truth) for image, truth in zip(images, truths, strict=True)]
    to_fp32 = [psnr_db(image, other) for image, other in zip(images, fp32, strict=True)]
    # torchmetrics imports torchvision.
    metrics = import_beside_cpu_torch("torchmetrics.functional.image")
    ssim = metrics.multiscale_structural_similarity_index_measure(
        torch.from_numpy(images),
        torch.from_numpy(truths),
        data_range=2.0,
        betas=tuple(beta / sum(MS_SSIM_BETAS) for beta in MS_SSIM_BETAS),
    )
    levels = np.abs(uint8_from_normalized(images).astype(int) - uint8_from_normalized(fp32).astype(int))
    return {
        "psnr_db": round(float(np.mean(to_truth)), 2),
        "worst_psnr_db": round(min(to_truth), 2),
        "ms_ssim": round(float(ssim), 4),
        "psnr_to_torch_fp32_db": round(float(np.mean(to_fp32)), 2),
        "worst_psnr_to_torch_fp32_db": round(min(to_fp32), 2),
        "largest_difference_levels": int(levels.max()),
    }


def measure(heldout: Path, *, plans: bool) -> dict[str, Any]:
    """The figures of every system, by name."""
    checkpoint = read_checkpoint(CHECKPOINT)
    model = recognize(checkpoint).load(checkpoint, LoadOptions())
    sketches, references, truths = read_heldout(heldout)
    with tempfile.TemporaryDirectory() as folder:
        request = ExportRequest(
            checkpoint=CHECKPOINT,
            output=Path(folder) / "faces.saishiki",
            targets=(CUDA,) if plans else (),
            profiles=parse_profiles([str(SIZE)], f"1:{BATCH}"),
            load=LoadOptions(),
        )
        bundle = Bundle.open(export_bundle(request).bundle)
        systems = {"torch fp32": torch_system(model), **bundle_systems(bundle, plans=plans)}
        images = {name: colour_all(colour, sketches, references) for name, colour in systems.items()}
    rows = {name: figures(image, truths, images["torch fp32"]) for name, image in images.items()}
    return {"characters": len(truths), "size": SIZE, "steps": STEPS, "eta": ETA, "systems": rows}


def main() -> None:
    """Measures, prints, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heldout", type=Path, default=CHECKPOINT.parent / "heldout")
    parser.add_argument("--plans", action="store_true", help="also run the plans in numpy, which takes minutes")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    result = {
        "environment": describe_machine(),
        "checkpoint": CHECKPOINT.name,
        **measure(arguments.heldout, plans=arguments.plans),
    }
    report(result, arguments.output)


if __name__ == "__main__":
    main()
