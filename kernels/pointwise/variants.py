"""The variants that are shipped as cubins: by the number of operands, eight numbers at a time or one by one."""

from saishiki.kernels.pointwise.kernel import ARGUMENTS, SIZES, _pointwise_kernel
from saishiki.kernels.variant import Variant
from saishiki.runtime.backends.launches.elementwise import FUNCTIONS, UNIT

BLOCKS = {UNIT: 128, 1: 512}
MAX_REGISTERS = {1: 64, 2: 80, 3: 96, 4: 128}
"""Per thread, by the number of operands."""


def _variant(operands: int, unit: int) -> Variant:
    signature = {name: "*fp16" if name.endswith("_ptr") else "i32" for name in (*ARGUMENTS, *SIZES)}
    return Variant(
        name=f"pointwise_{operands}_by{unit}",
        kernel=_pointwise_kernel,
        signature=signature,
        constexprs={"OPERANDS": operands, "UNIT": unit, "BLOCK": BLOCKS[unit]},
        aligned=tuple(name for name in signature if name.endswith("_ptr")) if unit > 1 else (),
        grid=((("units",), BLOCKS[unit]),),
        max_registers=MAX_REGISTERS[operands],
    )


VARIANTS: tuple[Variant, ...] = tuple(_variant(operands, unit) for operands in FUNCTIONS for unit in BLOCKS)
