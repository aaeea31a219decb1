"""A plan: the launches of one module in order, over buffers with symbolic dims, as a readable JSON file."""

from collections.abc import Iterator, Mapping

import msgspec
import numpy as np

from saishiki.runtime.errors import BundleError
from saishiki.runtime.plan.extents import Extent, Extents, resolve
from saishiki.runtime.plan.ops import AnyOp
from saishiki.runtime.signature import Array, Signature, Sizes

PLAN_VERSION = 1


class Buffer(msgspec.Struct, frozen=True):
    """Memory that lives from its first write to its last read: a dtype and symbolic dims."""

    dtype: str
    dims: tuple[str, ...]


class WeightSpec(msgspec.Struct, frozen=True):
    """A tensor of the file of weights, where its name is ``<module>/<name>``."""

    dtype: str
    shape: tuple[int, ...]


class HoistedVector(msgspec.Struct, frozen=True):
    """An input that is added to biases, so that convolutions take both as one vector: ``input + bias``, rounded once.

    Args:
        input: (B, P) fp32 of the interface, which depends on the step alone.
        bias: (P,) of the weights: the biases of all convolutions that take part of it, each at its place.
    """

    input: str
    bias: str


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The launches of a module.

    Tensors are named once, whether they are inputs and outputs of the module's signature, buffers, hoisted vectors or
    weights. Buffers hold pictures as (B, H, W, C) with C a multiple of 8, and tokens as (B, T, C).
    """

    version: int
    dtype: str
    buffers: Mapping[str, Buffer]
    hoisted: Mapping[str, HoistedVector]
    weights: Mapping[str, WeightSpec]
    ops: tuple[AnyOp, ...]

    def extents(self, signature: Signature, sizes: Sizes) -> Extents:
        """How large every tensor is at some sizes."""
        interface = {spec.name: spec for spec in (*signature.inputs, *signature.outputs)}
        of = {name: Extent(spec.shape(sizes), spec.dtype) for name, spec in interface.items()}
        for name, buffer in self.buffers.items():
            of[name] = Extent(tuple(resolve(dim, sizes) for dim in buffer.dims), buffer.dtype)
        for name, hoisted in self.hoisted.items():
            of[name] = Extent(interface[hoisted.input].shape(sizes), self.dtype)
        for name, weight in self.weights.items():
            of[name] = Extent(weight.shape, weight.dtype)
        return Extents(sizes, of)

    def hoist(self, name: str, rows: Array, weights: Mapping[str, Array]) -> Array:
        """A hoisted vector from its input: (..., P) in the plan's dtype."""
        bias = weights[self.hoisted[name].bias].astype(np.float32)
        vector: Array = (rows.astype(np.float32) + bias).astype(self.dtype)
        return vector

    def uses(self) -> Iterator[tuple[int, AnyOp, tuple[str, ...]]]:
        """Every operation with its place and the tensors that it touches."""
        for place, op in enumerate(self.ops):
            yield place, op, (*op.reads(), *op.writes())


def plan_from_json(text: bytes, *, source: str, signature: Signature) -> Plan:
    """Reads a plan; raises ``BundleError`` for one of another version, or one that does not fit the signature."""
    try:
        version = msgspec.json.decode(text, type=dict[str, msgspec.Raw]).get("version")
        if version is None or msgspec.json.decode(version) != PLAN_VERSION:
            found = "no version" if version is None else f"version {bytes(version).decode()}"
            raise BundleError(
                f"{source}: a plan of {found}, but this Saishiki reads version {PLAN_VERSION}; export the checkpoint "
                "again with: export-engines CHECKPOINT --targets onnx,cuda"
            )
        plan = msgspec.json.decode(text, type=Plan)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{source}: not a valid plan ({error}); export the checkpoint again") from error
    check_plan(plan, signature, source=source)
    return plan


def check_plan(plan: Plan, signature: Signature, *, source: str) -> None:
    """Raises ``BundleError`` where an operation reads what nothing wrote, or touches a tensor that the plan lacks."""
    inputs, outputs = ({spec.name for spec in specs} for specs in (signature.inputs, signature.outputs))
    written = inputs | plan.weights.keys() | plan.hoisted.keys()
    known = written | plan.buffers.keys() | outputs
    for name, vector in plan.hoisted.items():
        if vector.input not in inputs:
            raise BundleError(f"{source}: {name} is made of {vector.input}, which is no input; export again")
        if vector.bias not in plan.weights:
            raise BundleError(f"{source}: {name} is made of {vector.bias}, which is no weight; export again")
    for place, op, names in plan.uses():
        where = f"{source}: operation {place} ({type(op).__name__})"
        if unknown := [name for name in names if name not in known]:
            raise BundleError(f"{where} touches {unknown[0]}, which the plan does not have; export again")
        if early := [name for name in op.reads() if name not in written]:
            raise BundleError(f"{where} reads {early[0]} before anything is written to it; export again")
        if fixed := [name for name in op.writes() if name not in plan.buffers and name not in outputs]:
            raise BundleError(f"{where} writes to {fixed[0]}, which is no buffer; export again")
        written |= set(op.writes())
    if missing := outputs - written:
        raise BundleError(f"{source}: nothing writes the output {min(missing)}; export again")


def json_from_plan(plan: Plan) -> bytes:
    """The plan as JSON with a line for each buffer, weight and operation."""
    fields = [f'"{name}": {_lines(getattr(plan, name))}' for name in plan.__struct_fields__]
    return ("{\n" + ",\n".join(fields) + "\n}\n").encode()


def _lines(value: object) -> str:
    if isinstance(value, Mapping):
        items = [f" {_line(name)}: {_line(item)}" for name, item in value.items()]
        return "{\n" + ",\n".join(items) + "\n}" if items else "{}"
    if isinstance(value, tuple):
        return "[\n" + ",\n".join(f" {_line(item)}" for item in value) + "\n]"
    return _line(value)


def _line(value: object) -> str:
    return msgspec.json.encode(value).decode()
