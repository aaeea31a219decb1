"""The tiles of attention, and the variants that are shipped as cubins, by the width of their heads."""

import triton

from saishiki.kernels.attention.kernel import _attention_kernel
from saishiki.kernels.attention.wide_kernel import _wide_attention_kernel
from saishiki.kernels.masked_split_cross_attention.variants import split_head_dim, tile_sizes
from saishiki.kernels.variant import Variant
from saishiki.runtime.backends.launches.attention import HEAD_DIMS, UNIT, WIDE_FROM

MAX_HEAD_DIM = 512
MAX_REGISTERS = {32: 152, 64: 200, 80: 176, 128: 240, 512: 255}
"""Per thread, of the shipped variants by head_dim."""
D_PART = 64


def constants(head_dim: int, *, fp32: bool) -> dict[str, int]:
    """The sizes of tiles, num_warps and num_stages; for wide heads large ones that spill no registers in fp16."""
    if head_dim < WIDE_FROM:
        main, tail = split_head_dim(head_dim)
        return {"D": head_dim, "D_MAIN": main, "D_TAIL": tail, **tile_sizes(head_dim, fp32=fp32, blend=False)}
    tiles = {"BLOCK_T": 32, "BLOCK_S": 16} if fp32 else {"BLOCK_T": 64, "BLOCK_S": 32}
    parts = {"D": head_dim, "D_MAIN": triton.next_power_of_2(head_dim), "D_PART": D_PART}
    return {**parts, **tiles, "num_warps": 8, "num_stages": 2}


def _variant(head_dim: int) -> Variant:
    pointers = ("q_ptr", "k_ptr", "v_ptr", "out_ptr")
    units = tuple(f"{name}_{axis}_units" for name in ("q", "k", "v") for axis in ("batch", "head", "token"))
    tiles = constants(head_dim, fp32=False)
    num_warps, num_stages = tiles.pop("num_warps"), tiles.pop("num_stages")
    return Variant(
        name=f"attention_d{head_dim}_fp16",
        kernel=_wide_attention_kernel if head_dim >= WIDE_FROM else _attention_kernel,
        signature={
            **dict.fromkeys(pointers, "*fp16"),
            "scale": "fp32",
            **dict.fromkeys(("batch", "heads", "tokens", "keys", *units), "i32"),
        },
        constexprs={"UNIT": UNIT, **tiles, "IN_FP32": False},
        aligned=pointers,
        grid=((("tokens",), tiles["BLOCK_T"]), (("batch", "heads"), 1)),
        max_registers=MAX_REGISTERS[head_dim],
        num_warps=num_warps,
        num_stages=num_stages,
    )


VARIANTS: tuple[Variant, ...] = tuple(map(_variant, HEAD_DIMS))
