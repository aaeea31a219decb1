"""Trains the small AnimeDiffusion checkpoint: phase 1 learns to predict noise, phase 2 learns from whole DDIM runs.

    python train.py --data data --run run --phase 1 --minutes 70
    python train.py --data data --run run --phase 2 --minutes 25

Both phases can be interrupted and resumed with the same command. ``run/faces.safetensors`` is always the latest export.
"""

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from checkpoint import build_network, export
from dataset import Batch, plain_batch, read_triples, training_batch
from diffusion import image_loss, noise_loss, run_ddim, walk_from_truth
from evaluate import contact_sheet, psnr_db, sample
from torch import Tensor
from torch.optim import AdamW

from saishiki.models.animediffusion import AnimeDiffusion


@dataclass(frozen=True)
class Recipe:
    """What distinguishes the phases."""

    batch: int
    learning_rate: float
    ema_decay: float
    warmup_steps: int
    report_steps: int


@dataclass(frozen=True)
class Schedule:
    """How long a phase lasts, and how often it is saved and looked at."""

    minutes: float
    save_minutes: float
    watch_minutes: float


RECIPES = {
    1: Recipe(batch=8, learning_rate=4e-4, ema_decay=0.999, warmup_steps=200, report_steps=100),
    2: Recipe(batch=4, learning_rate=1e-4, ema_decay=0.99, warmup_steps=10, report_steps=10),
}
FINAL_RATE = 0.02
TIMELESS_SHARE = 0.06
WALK_SHARE = 0.25
WARPED_SHARE, XDOG_SHARE = 0.35, 0.2
HALF_SIZE_SHARE = 0.65  # of phase 1: a quarter of the work per image, enough to learn where colours come from
WATCHED = 16


class Run:
    """The state of a training run: weights, their moving average, the optimiser and the clock."""

    def __init__(self, folder: Path, phase: int, seed: int) -> None:
        self.folder, self.phase = folder, phase
        self.recipe = RECIPES[phase]
        self.network, self.average = build_network(), build_network().requires_grad_(False)
        self.optimiser = AdamW(self.network.parameters(), lr=self.recipe.learning_rate, weight_decay=1e-3, foreach=True)
        self.step, self.seconds, self.seed = 0, 0.0, seed
        self._resume()

    def _resume(self) -> None:
        """Continues this phase if it was begun, else starts it from the average of the phase before."""
        if self._path(self.phase).exists():
            state = torch.load(self._path(self.phase), weights_only=True)
            self.network.load_state_dict(state["network"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.seconds = state["step"], state["seconds"]
            self.average.load_state_dict(state["average"])
        elif self.phase > 1:
            state = torch.load(self._path(self.phase - 1), weights_only=True)
            self.network.load_state_dict(state["average"])
            self.average.load_state_dict(state["average"])
        else:
            self.average.load_state_dict(self.network.state_dict())

    def _path(self, phase: int) -> Path:
        return self.folder / f"phase{phase}.pt"

    def save(self) -> None:
        """Writes the resumable state and the export."""
        state = {"network": self.network.state_dict(), "average": self.average.state_dict()}
        state |= {"optimiser": self.optimiser.state_dict(), "step": self.step, "seconds": self.seconds}
        partial = self._path(self.phase).with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._path(self.phase))
        export(self.average, self.folder / "faces.safetensors")

    def report(self, text: str) -> None:
        """Prints a line of the log."""
        print(f"phase {self.phase} step {self.step} {text}", flush=True)

    def update(self, loss: Tensor, progress: float) -> None:
        """One optimiser step at the rate that ``progress`` (0 to 1) of the phase asks for."""
        warmup = min(1.0, (self.step + 1) / self.recipe.warmup_steps)
        cosine = FINAL_RATE + (1.0 - FINAL_RATE) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate * warmup * cosine
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self.recipe.ema_decay, (1.0 + self.step) / (10.0 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1.0 - decay)


def phase_one_loss(network: AnimeDiffusion, batch: Batch, generator: torch.Generator) -> Tensor:
    """The noise loss; a few batches go without time, for the walk."""
    timed = torch.rand((), generator=generator).item() >= TIMELESS_SHARE
    return noise_loss(network, batch, generator, timed=timed)


def phase_two_loss(network: AnimeDiffusion, batch: Batch, generator: torch.Generator) -> Tensor:
    """The image loss of a DDIM run, begun at pure noise as at inference, or at the walk from the truth."""
    walks = torch.rand((), generator=generator).item() < WALK_SHARE
    eta = torch.randint(2, (), generator=generator).item()
    start = torch.randn(batch.target.shape, generator=generator)
    if walks:
        start = walk_from_truth(network, batch, generator)
    return image_loss(run_ddim(network, start, batch.condition, generator, eta=float(eta)), batch.target)


LOSSES = {1: phase_one_loss, 2: phase_two_loss}


def watch(run: Run, heldout: Tensor) -> str:
    """Figures on the first few held-out characters, and a contact sheet beside the state."""
    batch = plain_batch(heldout[:WATCHED])
    images = {eta: sample(run.average, batch.condition, eta=eta, seed=0) for eta in (0.0, 1.0)}
    contact_sheet(batch, images[1.0], run.folder / f"phase{run.phase}_{run.step:06d}.png")
    return "heldout " + " ".join(
        f"eta {eta:.0f} {psnr_db(image, batch.target).mean():.2f} dB" for eta, image in images.items()
    )


def draw_triples(train_set: Tensor, rng: np.random.Generator, count: int, *, halved: bool) -> Tensor:
    """(B, 7, H, W) uint8 of random characters: ``count`` of them, or twice as many at half the size."""
    if not halved:
        return train_set[torch.from_numpy(rng.integers(len(train_set), size=count))]
    chosen = train_set[torch.from_numpy(rng.integers(len(train_set), size=2 * count))]
    return F.avg_pool2d(chosen.float(), 2).round().to(torch.uint8)


def train(run: Run, train_set: Tensor, heldout: Tensor, schedule: Schedule) -> None:
    """Trains until the phase has had its minutes, saving and reporting on the way."""
    rng = np.random.default_rng((run.seed, run.phase, run.step))
    generator = torch.Generator().manual_seed(run.seed * 1_000_003 + run.phase * 500_009 + run.step)
    before, began = run.seconds, time.monotonic()
    saved, watched, losses = began, began, []
    while run.seconds < 60.0 * schedule.minutes:
        progress = run.seconds / (60.0 * schedule.minutes)
        halved = run.phase == 1 and progress < HALF_SIZE_SHARE
        batch = training_batch(
            draw_triples(train_set, rng, run.recipe.batch, halved=halved),
            rng,
            warped_share=WARPED_SHARE,
            xdog_share=XDOG_SHARE,
        )
        with torch.autocast("cpu", torch.bfloat16):
            loss = LOSSES[run.phase](run.network, batch, generator)
        run.update(loss, progress)
        losses.append(loss.item())
        now = time.monotonic()
        run.seconds = before + now - began
        if run.step % run.recipe.report_steps == 0:
            run.report(f"{run.seconds / 60:.1f} min loss {np.mean(losses):.4f}")
            losses.clear()
        if now - saved > 60.0 * schedule.save_minutes:
            run.save()
            saved = now
        if now - watched > 60.0 * schedule.watch_minutes:
            run.report(watch(run, heldout))
            watched = time.monotonic()
    run.save()
    run.report(watch(run, heldout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with train.bin and heldout.bin")
    parser.add_argument("--run", type=Path, default=Path("run"), help="folder for state, exports and contact sheets")
    parser.add_argument("--phase", type=int, choices=sorted(RECIPES), required=True)
    parser.add_argument("--minutes", type=float, required=True, help="the learning rate follows it")
    parser.add_argument("--save-minutes", type=float, default=5.0)
    parser.add_argument("--watch-minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.run.mkdir(parents=True, exist_ok=True)
    train_set, heldout = (read_triples(args.data / split) for split in ("train", "heldout"))
    schedule = Schedule(args.minutes, args.save_minutes, args.watch_minutes)
    train(Run(args.run, args.phase, args.seed), train_set, heldout, schedule)


if __name__ == "__main__":
    main()
