"""The shapes that ``bench_kernels.py`` measures: those of the networks the ops are made for, and tiny ones to try it.

Masks are drawn on the token grid: ``figure``, an ellipse over a third of the picture; ``lines``, diagonals that cross
every row; ``foreground``, all of it. Each region has half of the keys. Tokens are taken in the order of their masks
where a case does not say "unsorted".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from roofline import Work

from kernel_bench.convolution_case import CONVOLUTIONS, TINY_CONVOLUTIONS, ConvolutionCase
from kernel_bench.small_cases import (
    SMALL_CASES,
    TINY_SMALL_CASES,
    PlainAttentionCase,
    RegionOrderCase,
    SmallCase,
)
from kernel_bench.work import Bools, Regions, attention_work, group_norm_work, projection_work, sampler_work

FP16_BYTES = 2
LINE_EVERY = 8


def _figure(height: int, width: int) -> Bools:
    y, x = np.mgrid[:height, :width]
    inside: Bools = ((y + 0.5) / height - 0.5) ** 2 / 0.4**2 + ((x + 0.5) / width - 0.5) ** 2 / 0.27**2 < 1
    return inside


def _lines(height: int, width: int) -> Bools:
    y, x = np.mgrid[:height, :width]
    on: Bools = (x + y) % LINE_EVERY == 0
    return on


MASKS: Mapping[str, Callable[[int, int], Bools]] = {
    "foreground": lambda height, width: np.ones((height, width), bool),
    "figure": _figure,
    "lines": _lines,
}


def tile_of(variant: str, name: str) -> int:
    """A tile size of a shipped kernel."""
    from saishiki.kernels.masked_split_cross_attention import VARIANTS as ATTENTION
    from saishiki.kernels.split_projection import VARIANTS as PROJECTION

    (found,) = (each for each in (*ATTENTION, *PROJECTION) if each.name == variant)
    return int(found.constexprs[name])


@dataclass(frozen=True)
class SplitCase:
    """What the two ops with a region mask have in common."""

    network: str
    batch: int
    height: int
    width: int
    mask: str
    sort: bool = field(default=True, kw_only=True)

    @property
    def name(self) -> str:
        """As rows are labelled."""
        return f"{self.shape_name}, {self.mask}{'' if self.ordered else ', unsorted'}"

    @property
    def ordered(self) -> bool:
        """Whether the op is given the tokens sorted by their masks; of one region alone they are."""
        return self.mask != "foreground" and self.sort

    @property
    def shape_name(self) -> str:
        """All but the mask."""
        raise NotImplementedError

    @property
    def tokens(self) -> int:
        return self.height * self.width

    @cached_property
    def foreground(self) -> Bools:
        """(B, T); the same mask in every batch row."""
        return np.tile(MASKS[self.mask](self.height, self.width).reshape(1, -1), (self.batch, 1))


@dataclass(frozen=True)
class AttentionCase(SplitCase):
    """masked_split_cross_attention, fp16."""

    heads: int
    head_dim: int
    keys: int
    merge_scale: float = 0.0

    op = "masked_split_cross_attention"

    @property
    def shape_name(self) -> str:
        """All but the mask."""
        merged = ", merged" if self.merge_scale else ""
        return f"{self.network}: {self.batch} x {self.tokens} queries, {self.keys} keys, {self.heads} heads{merged}"

    @property
    def variant(self) -> str:
        return f"{self.op}_{'merge_' if self.merge_scale else ''}d{self.head_dim}_fp16"

    @cached_property
    def regions(self) -> Regions:
        """Where merged, a foreground token needs both regions."""
        merged = self.foreground & (self.merge_scale > 0)
        regions = Regions(self.foreground, ~self.foreground | merged, tile_of(self.variant, "BLOCK_T"))
        return regions.in_order() if self.ordered else regions

    def work(self) -> Work:
        half = self.keys // 2
        return attention_work(
            self.regions,
            heads=self.heads,
            width=self.head_dim,
            fg_tokens=half,
            bg_tokens=half,
            q_bg=False,
            itemsize=FP16_BYTES,
            ordered=self.ordered,
        )


@dataclass(frozen=True)
class ProjectionCase(SplitCase):
    """split_projection, fp16."""

    channels: int

    op = "split_projection"
    variant = "split_projection_fp16"

    @property
    def shape_name(self) -> str:
        """All but the mask."""
        return f"{self.network}: {self.batch} x {self.tokens} tokens, {self.channels} to {self.channels}"

    @cached_property
    def regions(self) -> Regions:
        """Each token needs the weight of its own region; tiles run on from one batch row into the next."""
        foreground = (np.sort(self.foreground, axis=1) if self.ordered else self.foreground).reshape(1, -1)
        return Regions(foreground, ~foreground, tile_of(self.variant, "BLOCK_M"))

    def work(self) -> Work:
        return projection_work(
            self.regions,
            channels_in=self.channels,
            channels_out=self.channels,
            itemsize=FP16_BYTES,
            ordered=self.ordered,
        )


@dataclass(frozen=True)
class SamplerCase:
    """fused_sampler_step: state in fp32, prediction and model input in fp16; DDIM, or DPM++ 2M where ``past`` is 1."""

    network: str
    shape: tuple[int, int, int, int]
    slots: int = 1
    past: int = 0
    noise: bool = False
    input_written: bool = True

    op = "fused_sampler_step"

    @property
    def name(self) -> str:
        """As rows are labelled."""
        solver = ("DDIM" if not self.past else "DPM++ 2M") + (" with noise" if self.noise else "")
        slots = f", {self.slots} slots" if self.slots > 1 else ""
        return f"{self.network}: {' x '.join(map(str, self.shape))}, {solver}{slots}"

    shape_name = name

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape))

    def work(self) -> Work:
        return sampler_work(
            self.elements,
            slots=self.slots,
            itemsize=FP16_BYTES,
            noise=self.noise,
            past=self.past,
            input_written=self.input_written,
        )


@dataclass(frozen=True)
class GroupNormCase:
    """group_norm_silu, fp16.

    Args:
        channels: of x, and of what is concatenated to it.
        height: of the output, as is ``width``; an upsampled x has half of each.
    """

    network: str
    batch: int
    channels: tuple[int, ...]
    height: int
    width: int
    eps: float = 1e-5
    upsample: bool = False
    return_input: bool = False
    embedding: bool = False
    sums: bool = False
    channels_last: bool = True

    op = "group_norm_silu"
    groups = 32

    @property
    def name(self) -> str:
        """As rows are labelled."""
        flags = {
            "concat": len(self.channels) > 1,
            "upsampled": self.upsample,
            "input kept": self.return_input,
            "embedding": self.embedding,
            "sums given": self.sums,
            "NCHW": not self.channels_last,
        }
        shape = f"{self.batch} x {' + '.join(map(str, self.channels))} x {self.height} x {self.width}"
        return f"{self.network}: {shape}" + "".join(f", {flag}" for flag, on in flags.items() if on)

    shape_name = name

    def work(self) -> Work:
        return group_norm_work(
            batch=self.batch,
            channels=self.channels,
            pixels=self.height * self.width,
            itemsize=FP16_BYTES,
            upsample=self.upsample,
            return_input=self.return_input,
            sums=self.sums,
        )


def details_of(case: "KernelCase") -> Mapping[str, float]:
    """Where a case has regions: the share of tiles that read both, and of products that some token needs."""
    if not isinstance(case, AttentionCase | ProjectionCase):
        return {}
    regions = case.regions
    return {"mixed_share": round(regions.mixed_share, 4), "useful_share": round(regions.useful_share, 4)}


KernelCase = (
    AttentionCase
    | ProjectionCase
    | SamplerCase
    | GroupNormCase
    | ConvolutionCase
    | PlainAttentionCase
    | RegionOrderCase
    | SmallCase
)

# Token grid, heads: the levels of the U-Net that attend to the reference, largest first.
SD21_512 = ((64, 5), (32, 10), (16, 20), (8, 20))
SD21_768 = ((96, 5), (48, 10), (24, 20), (12, 20))
XL_1024 = ((64, 10), (32, 20))
U_NETS = (("SD2.1 512 px", SD21_512, 512), ("SD2.1 768 px", SD21_768, 512), ("XL 1024 px", XL_1024, 392))


def _attention_cases() -> tuple[AttentionCase, ...]:
    cases = []
    for network, levels, keys in U_NETS:
        for side, heads in levels:
            for mask, merge_scale, sort in (
                ("foreground", 0.0, True),
                ("figure", 0.0, True),
                ("lines", 0.0, True),
                ("figure", 0.0, False),
                ("figure", 0.5, True),
            ):
                cases.append(AttentionCase(network, 2, side, side, mask, heads, 64, keys, merge_scale, sort=sort))
    return tuple(cases)


def _projection_cases() -> tuple[ProjectionCase, ...]:
    return tuple(
        ProjectionCase(network, 2, side, side, mask, 64 * heads, sort=sort)
        for network, levels, _ in U_NETS
        for side, heads in levels
        for mask, sort in (("figure", True), ("lines", True), ("figure", False))
    )


CASES: tuple[KernelCase, ...] = (
    *_attention_cases(),
    *_projection_cases(),
    SamplerCase("AnimeDiffusion 256 px", (1, 3, 256, 256), input_written=False),
    SamplerCase("AnimeDiffusion 256 px", (64, 3, 256, 256), input_written=False),
    SamplerCase("AnimeDiffusion 256 px", (64, 3, 256, 256), noise=True, input_written=False),
    SamplerCase("XL 1024 px", (1, 4, 128, 128), slots=2, past=1),
    SamplerCase("XL 1024 px", (1, 4, 128, 128), slots=3, past=1, noise=True),
    SamplerCase("XL 1024 px", (64, 4, 128, 128), slots=2, past=1),
    GroupNormCase("AnimeDiffusion 256 px", 1, (64,), 256, 256),
    GroupNormCase("AnimeDiffusion 256 px", 1, (64,), 256, 256, embedding=True),
    GroupNormCase("AnimeDiffusion 256 px", 1, (128,), 128, 128, embedding=True),
    GroupNormCase("AnimeDiffusion 256 px", 1, (256,), 64, 64, embedding=True),
    GroupNormCase("AnimeDiffusion 256 px", 1, (512,), 32, 32, embedding=True),
    GroupNormCase("AnimeDiffusion 256 px", 1, (128, 64), 256, 256),
    GroupNormCase("AnimeDiffusion 256 px", 1, (128, 64), 256, 256, upsample=True, return_input=True),
    GroupNormCase("AnimeDiffusion 256 px", 1, (256, 128), 128, 128, upsample=True, return_input=True),
    GroupNormCase("AnimeDiffusion 256 px", 1, (512, 256), 64, 64, upsample=True, return_input=True),
    GroupNormCase("AnimeDiffusion 256 px", 1, (64,), 256, 256, sums=True),
    GroupNormCase("SD2.1 512 px", 2, (320,), 64, 64),
    GroupNormCase("SD2.1 512 px", 2, (1280,), 16, 16),
    GroupNormCase("SD2.1 512 px", 2, (640, 320), 64, 64),
    GroupNormCase("SD VAE 512 px", 1, (512,), 64, 64, eps=1e-6),
    GroupNormCase("SD VAE 512 px", 1, (512,), 128, 128, eps=1e-6),
    GroupNormCase("SD VAE 512 px", 1, (256,), 256, 256, eps=1e-6),
    GroupNormCase("SD VAE 512 px", 1, (128,), 512, 512, eps=1e-6),
    GroupNormCase("SD VAE 512 px, batch 8", 8, (128,), 512, 512, eps=1e-6),
    GroupNormCase("SD VAE 512 px, batch 8", 8, (128,), 512, 512, eps=1e-6, sums=True),
    GroupNormCase("SD VAE 512 px, batch 8", 8, (128,), 512, 512, eps=1e-6, channels_last=False),
    *CONVOLUTIONS,
    *SMALL_CASES,
)

TINY_CASES: tuple[KernelCase, ...] = (
    AttentionCase("tiny", 1, 5, 4, "lines", 2, 32, 10),
    AttentionCase("tiny", 1, 5, 4, "figure", 1, 32, 6, 0.5),
    AttentionCase("tiny", 1, 5, 4, "figure", 1, 32, 6, sort=False),
    ProjectionCase("tiny", 1, 4, 5, "lines", 32),
    SamplerCase("tiny", (1, 3, 5, 7), input_written=False),
    SamplerCase("tiny", (2, 4, 3, 3), slots=2, past=1, noise=True),
    GroupNormCase("tiny", 1, (64,), 3, 3, embedding=True),
    GroupNormCase("tiny", 1, (32, 32), 6, 4, upsample=True, return_input=True),
    GroupNormCase("tiny", 1, (32,), 3, 3, sums=True, channels_last=False),
    *TINY_CONVOLUTIONS,
    *TINY_SMALL_CASES,
)
