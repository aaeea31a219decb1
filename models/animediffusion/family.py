"""AnimeDiffusion as a family, and the reference that exported modules and runs are compared with."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from saishiki.models.animediffusion import loading
from saishiki.models.animediffusion.modules import modules, signatures
from saishiki.models.animediffusion.network import CONFIGS, AnimeDiffusion
from saishiki.models.checkpoints import Checkpoint, CheckpointError
from saishiki.models.family import Family, LoadOptions, RecordedRun, Substitute, Tensors
from saishiki.runtime.manifest import SamplerDefaults
from saishiki.runtime.schedule import BUFFERS
from saishiki.runtime.signature import Array, Signature

PROBED_TIMESTEPS = (901, 501, 101, 1)
SEED = 20240107
SAMPLER = SamplerDefaults(name="ddim", steps=10, eta=1.0, start="noise")


@dataclass(frozen=True)
class LoadedAnimeDiffusion:
    """A loaded network, seen as a :class:`saishiki.models.family.LoadedModel`."""

    network: AnimeDiffusion
    notices: tuple[str, ...]

    @property
    def variant(self) -> str:
        """``published`` for the published widths and depths, else ``custom``."""
        names = [name for name, config in CONFIGS.items() if config == self.network.config]
        return names[0] if names else "custom"

    @property
    def config(self) -> Mapping[str, Any]:
        """The config as plain data."""
        return asdict(self.network.config)

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """``time_projection`` and ``denoiser``."""
        return modules(self.network)

    @property
    def weight_groups(self) -> Mapping[str, str]:
        """None: the two modules have no weight in common."""
        return {}

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """The modules' signatures."""
        return signatures(self.network.config)

    @property
    def schedule(self) -> Mapping[str, Array]:
        """The seven (T,) fp32 buffers, as stored."""
        return {name: getattr(self.network, name).numpy() for name in BUFFERS}

    def probe(self, module: str, sizes: Mapping[str, int], sketch: Tensor, reference: Tensor) -> Tensors:
        """Timesteps over the whole schedule, or the reference noised to a timestep that differs over the batch."""
        last = self.network.config.timesteps - 1
        if module == "time_projection":
            return {"t": torch.linspace(0, last, sizes["steps"]).round()}
        published = [PROBED_TIMESTEPS[i % len(PROBED_TIMESTEPS)] for i in range(sizes["batch"])]
        t = torch.tensor([min(step, last) for step in published])
        gamma = self._gammas[t][:, None, None, None]
        noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(0))
        return {
            "noisy": gamma.sqrt() * reference + (1 - gamma).sqrt() * noise,
            "condition": torch.cat([sketch, reference], dim=1),
            "time": self.network.denoise_fn.time_projections(t),
        }

    @property
    def prediction(self) -> Literal["eps", "v"]:
        """Noise."""
        return "eps"

    @property
    def runs(self) -> tuple[str, ...]:
        """One: there is one way to use it."""
        return ("run",)

    def record(
        self, run: str, sketch: Tensor, reference: Tensor, *, steps: int, substitute: Substitute | None = None
    ) -> RecordedRun:
        """The published DDIM run from seeded noise."""
        generator = torch.Generator().manual_seed(SEED)
        start = torch.randn(reference.shape, generator=generator)
        noise = torch.randn((steps, *reference.shape), generator=generator)
        denoiser = None if substitute is None else substitute("denoiser", self.modules["denoiser"])
        states = self.sample(sketch, reference, start, noise, eta=SAMPLER.eta, denoiser=denoiser)
        inputs = {"sketch": sketch, "reference": reference, "start": start, "noise": noise}
        return RecordedRun(inputs, {"steps": steps, "eta": SAMPLER.eta, "start": "noise"}, states, states[-1])

    def sample(
        self,
        sketch: Tensor,
        reference: Tensor,
        start: Tensor,
        noise: Tensor,
        *,
        eta: float,
        denoiser: nn.Module | None = None,
    ) -> Tensor:
        """DDIM as published: timesteps 1, 1 + stride, ..., the last step to 0, fresh noise in every step."""
        gammas, condition = self._gammas, torch.cat([sketch, reference], dim=1)
        stride = self.network.config.timesteps // len(noise)
        x = start
        states: list[Tensor] = []
        for k in reversed(range(len(noise))):
            t, previous = 1 + k * stride, 1 + (k - 1) * stride if k else 0
            g, p = gammas[t], gammas[previous]
            eps = self._predict(x, condition, torch.full((len(x),), t), denoiser)
            sigma = eta * ((1 - p) / (1 - g) * (1 - g / p)).sqrt()
            x0 = ((x - (1 - g).sqrt() * eps) / g.sqrt()).clamp(-1, 1)
            x = p.sqrt() * x0 + (1 - p - sigma**2).sqrt() * eps + sigma * noise[len(states)]
            states.append(x)
        return torch.stack(states)

    @property
    def _gammas(self) -> Tensor:
        return self.network.get_buffer("gammas")

    def _predict(self, x: Tensor, condition: Tensor, t: Tensor, denoiser: nn.Module | None) -> Tensor:
        unet = self.network.denoise_fn
        eps: Tensor
        if denoiser is None:
            eps = unet(torch.cat([x, condition], dim=1), t)
        else:
            eps = denoiser(noisy=x, condition=condition, time=unet.time_projections(t))
        return eps


def _load(checkpoint: Checkpoint, options: LoadOptions) -> LoadedAnimeDiffusion:
    config = loading.config_from_checkpoint(checkpoint, attention_head=options.attention_head)
    if config.timesteps <= SAMPLER.steps:
        raise CheckpointError(
            f"{checkpoint.path}: its schedule has {config.timesteps} timesteps, too few for the published "
            f"{SAMPLER.steps} sampling steps; expected more than that, published are {CONFIGS['published'].timesteps}"
        )
    notices = []
    if options.attention_head is None and loading.stated_heads(checkpoint) is None:
        notices.append(
            "the checkpoint does not say how many attention heads it has; assuming the published "
            f"{config.attention_head} (say otherwise with --attention-heads)"
        )
    return LoadedAnimeDiffusion(loading.load(checkpoint, config), tuple(notices))


ANIMEDIFFUSION = Family(
    name=loading.FAMILY,
    sampler=SAMPLER,
    fp32_modules=frozenset({"time_projection"}),
    matches=loading.matches,
    load=_load,
    options=frozenset({"attention_head"}),
)
