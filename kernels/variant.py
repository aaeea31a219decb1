"""A kernel with its compile-time constants chosen: what becomes one cubin per architecture."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from triton.compiler import ASTSource

SMS = (80, 86, 89, 90, 120)
"""The compute capabilities that cubins are built for, times ten."""

Grid = tuple[tuple[tuple[str, ...], int], ...]
"""Per axis, the arguments whose product is divided, and by what, rounded up: ``((("tokens",), 64), (("rows",), 1))``"""


@dataclass(frozen=True)
class Variant:
    """What ``python -m saishiki.kernels.build`` compiles.

    Args:
        name: as in ``kernels/README.md`` and in the runtime's launches; op first: ``group_norm_silu_apply_nhwc_fp16``.
        signature: Triton's type of each argument that is passed at run time, in their order.
        aligned: arguments that the caller promises to be multiples of 16.
        grid: how many blocks a launch has.
        max_registers: per thread; more fails the tests.
        num_warps: 32 threads each.
        num_stages: depth of Triton's software pipeline.
        sms: those of :data:`SMS` that it is built for.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, bool | int]
    aligned: tuple[str, ...]
    grid: Grid
    max_registers: int
    num_warps: int = 4
    num_stages: int = 2
    sms: tuple[int, ...] = SMS

    def source(self) -> ASTSource:
        """What Triton compiles."""
        names = self.kernel.arg_names
        return ASTSource(
            fn=self.kernel,
            signature={name: self.signature.get(name, "constexpr") for name in names},
            constexprs={(names.index(name),): value for name, value in self.constexprs.items()},
            attrs={(names.index(name),): [["tt.divisibility", 16]] for name in self.aligned},
        )
