"""The tiles of the kernel of mask-guided cross-attention, and the variants that are shipped as cubins."""

import triton

from saishiki.kernels.masked_split_cross_attention.kernel import STRIDES, _masked_split_cross_attention_kernel
from saishiki.kernels.variant import Variant
from saishiki.runtime.backends.launches.regions import UNIT

MAX_HEAD_DIM = 128
MAX_REGISTERS = {
    False: {32: 152, 64: 200, 80: 176, 128: 240},
    True: {32: 136, 64: 248, 80: 252, 128: 240},
}
"""Per thread, of the shipped variants: of a blend or not, then by head_dim."""


def split_head_dim(head_dim: int) -> tuple[int, int]:
    """D_MAIN and D_TAIL: powers of two from 16 on that cover a head of 1 to 128, the second or 0; 80 is 64 + 16."""
    main = max(16, 1 << (head_dim.bit_length() - 1))
    rest = head_dim - main
    if rest <= 0:
        return main, 0
    tail = max(16, triton.next_power_of_2(rest))
    return (main, tail) if tail < main else (2 * main, 0)


def tile_sizes(head_dim: int, *, fp32: bool, blend: bool) -> dict[str, int]:
    """BLOCK_T, BLOCK_S, num_warps and num_stages; of those tried, large ones that spill no registers in fp16."""
    if fp32:
        return {"BLOCK_T": 32, "BLOCK_S": 32, "num_warps": 8 if head_dim > 64 else 4, "num_stages": 1}
    # A blend keeps one region's result beside the other's accumulator: small heads take fewer keys at a time for it,
    # heads of 128 twice the threads.
    narrow = blend and head_dim <= 32
    block_s = 32 if narrow or head_dim > 64 else 64
    num_warps = 8 if blend and head_dim > 80 else 4
    return {"BLOCK_T": 64, "BLOCK_S": block_s, "num_warps": num_warps, "num_stages": 2}


def _variant(head_dim: int, *, blend: bool) -> Variant:
    pointers = ("q_ptr", "q_bg_ptr", "k_ptr", "v_ptr", "out_ptr")
    main, tail = split_head_dim(head_dim)
    tiles = tile_sizes(head_dim, fp32=False, blend=blend)
    return Variant(
        name=f"masked_split_cross_attention_{'merge_' if blend else ''}d{head_dim}_fp16",
        kernel=_masked_split_cross_attention_kernel,
        signature={
            "q_ptr": "*fp16",
            "q_bg_ptr": "*fp16",
            "k_ptr": "*fp16",
            "v_ptr": "*fp16",
            "mask_ptr": "*fp32",
            "kv_index_ptr": "*i32",
            "order_ptr": "*i32",
            "out_ptr": "*fp16",
            "selection": "i32",
            "threshold": "fp32",
            "fg_scale": "fp32",
            "bg_scale": "fp32",
            # Not an argument of the launch: a recorded one is made once, and serves every share.
            "merge_scale": "*fp32" if blend else "fp32",
            **dict.fromkeys(("batch", "tokens", "keys", "fg_tokens", "heads", *STRIDES), "i32"),
        },
        constexprs={
            "BLEND": blend,
            "MERGE_IN_MEMORY": blend,
            "HAS_Q_BG": blend,
            "HAS_KV_INDEX": False,
            "HAS_ORDER": True,
            "UNIT": UNIT,
            "D": head_dim,
            "D_MAIN": main,
            "D_TAIL": tail,
            "BLOCK_T": tiles["BLOCK_T"],
            "BLOCK_S": tiles["BLOCK_S"],
            "IN_FP32": False,
        },
        aligned=pointers,
        grid=((("tokens",), tiles["BLOCK_T"]), (("batch", "heads"), 1)),
        max_registers=MAX_REGISTERS[blend][head_dim],
        num_warps=tiles["num_warps"],
        num_stages=tiles["num_stages"],
    )


VARIANTS: tuple[Variant, ...] = tuple(
    _variant(head_dim, blend=blend) for blend, ceilings in MAX_REGISTERS.items() for head_dim in ceilings
)
