"""Launches of what is computed number by number, and of copies, by the kernel of ``saishiki.kernels.pointwise``."""

from saishiki.runtime.backends.launches.elementwise import Operand, elementwise_launch
from saishiki.runtime.backends.launches.launch import Address, Launch
from saishiki.runtime.backends.launches.operand import address_of
from saishiki.runtime.plan.extents import Extents, Strided, resolve
from saishiki.runtime.plan.ops import Copy, Pointwise


def pointwise_launches(op: Pointwise, extents: Extents, address: Address, sms: int) -> tuple[Launch, ...]:
    """One launch. Raises ``BackendError`` for functions, dtypes and axes that no shipped kernel takes."""
    shape = extents.strided_shape(op.out)
    operands = [_operand(part, extents, address) for part in op.inputs]
    return (elementwise_launch(op.function, shape, _operand(op.out, extents, address), operands),)


def copy_launches(op: Copy, extents: Extents, address: Address, sms: int) -> tuple[Launch, ...]:
    """One launch for each part, and one for the zeros behind them. Raises as :func:`pointwise_launches` does."""
    shape, out = extents.strided_shape(op.out), _operand(op.out, extents, address)
    launches, start = [], 0
    for part in op.parts:
        part_shape = extents.strided_shape(part)
        target = _from(out, op.axis, start)
        launches.append(elementwise_launch("copy", part_shape, target, [_operand(part, extents, address)]))
        start += part_shape[op.axis]
    if left := shape[op.axis] - start:
        rest = (*shape[: op.axis], left, *shape[op.axis + 1 :])
        launches.append(elementwise_launch("copy", rest, _from(out, op.axis, start), []))
    return tuple(launches)


def _operand(part: Strided, extents: Extents, address: Address) -> Operand:
    strides = tuple(resolve(stride, extents.sizes) for stride in part.strides)
    return Operand(address_of(part, extents, address), extents.of[part.buffer].dtype, strides)


def _from(out: Operand, axis: int, start: int) -> Operand:
    """What lies in out from a place of an axis on."""
    itemsize = 2 if out.dtype == "float16" else 4
    return Operand(out.address + start * out.strides[axis] * itemsize, out.dtype, out.strides)
