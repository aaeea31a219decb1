"""Every operation of a plan, alone: against fp64 with its outputs full of NaN before, and its time beside the model's.

A row for each operation and library that has something for it: cuDNN where it is installed, and our kernels. What an
operation reads is what those before it left. The truth is the operation's own reference, given operands in fp64, from
the very numbers that the GPU is given. Times are of the operation repeated in a CUDA graph (``op_times.py``); ``sum``
rows add them up. A dry run takes the first operation of each kind, and computes the others by their references.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from battery.clock import percentiles
from battery.network import prepare_inference
from battery.part import Options, Row
from battery.plan_backends import CUDNN, TRITON, plan_backend
from battery.plan_subjects import Subject, animediffusion, colorizediffusion
from saishiki.runtime.backends.cuda_backend import CudaBackend, PlannedModule, why_unavailable
from saishiki.runtime.backends.cudnn import WORKSPACE, ZEROS
from saishiki.runtime.backends.device import Memory, padded_bytes
from saishiki.runtime.backends.launches import launches_of, workspaces_of
from saishiki.runtime.backends.op_times import time_ops
from saishiki.runtime.bench.ops import kind_of
from saishiki.runtime.errors import BackendError
from saishiki.runtime.plan.extents import Extents, Tensors
from saishiki.runtime.plan.ops import AnyOp
from saishiki.runtime.plan.time_model import GPUS, Gpu, modelled_s
from saishiki.runtime.signature import Array

BUDGET = 1e-3
"""Relative L2 error of what an operation writes; rounding to fp16 alone takes up to 0.4 of it."""
ZEROS_BYTES = 1 << 16  # more than the bias of any layer

Arrays = dict[str, Array]


def of_animediffusion(options: Options) -> Iterator[Row]:
    """At 256x256, batch 1."""
    return every_operation(animediffusion, options)


def of_colorizediffusion(options: Options) -> Iterator[Row]:
    """v2's full mode at 256x256, guided by the reference."""
    return every_operation(colorizediffusion, options)


def every_operation(subject_of: Callable[[Options], Subject], options: Options) -> Iterator[Row]:
    """The rows of a subject, as cuDNN's backend runs its plan where that is there, else as our kernels do."""
    prepare_inference(options)
    name = CUDNN if options.dry_run or why_unavailable(CUDNN) is None else TRITON
    with plan_backend(name, options) as backend:
        subject = subject_of(options)
        yield {"what": "plan", "network": subject.name, "backend": name, "launches": len(subject.loaded.plan.ops)}
        with backend.working():
            rows = list[Row]()
            for row in OpBench.of(backend, subject).rows(options):
                rows.append(row)
                yield row
        yield from sums_of(rows)


@dataclass
class OpBench:
    """The tensors of a plan on a device, each in memory of its own, and in host memory as the device has them.

    Args:
        ops: as the backend runs them.
    """

    backend: CudaBackend
    ops: Sequence[AnyOp]
    extents: Extents
    host: Arrays
    memory: dict[str, Memory] = field(default_factory=dict)

    @classmethod
    def of(cls, backend: CudaBackend, subject: Subject) -> "OpBench":
        """With weights and inputs in place; buffers and outputs hold NaN."""
        loaded = subject.loaded
        module = PlannedModule(backend, loaded)
        extents = module.plan.extents(loaded.signature, subject.sizes)
        hoisted = {
            name: loaded.plan.hoist(name, subject.inputs[vector.input], loaded.weights)
            for name, vector in loaded.plan.hoisted.items()
        }
        known = {**loaded.weights, **subject.inputs, **hoisted}
        host = {name: known.get(name, _nan(extents, name)) for name in extents.of}
        bench = cls(backend, module.plan.ops, extents, host)
        for name, array in host.items():
            bench._put(name, array)
        bench.memory[ZEROS] = backend.device.allocate(ZEROS_BYTES)
        backend.device.upload(bench.memory[ZEROS], np.zeros(ZEROS_BYTES, np.uint8))
        return bench

    def rows(self, options: Options) -> Iterator[Row]:
        """A row for each operation and library."""
        gpu, seen = gpu_like(self.backend.device), set[str]()
        for place, op in enumerate(self.ops):
            is_new = kind_of(op) not in seen
            seen.add(kind_of(op))
            labels = {"what": "operation", "place": place, "op": kind_of(op), "out": op.writes()[0]}
            before, truth = {name: self.host[name] for name in op.writes()}, self.truth(op)
            left = {name: array.astype(before[name].dtype) for name, array in truth.items()}
            if is_new or not options.dry_run:
                for library, enqueue in self.ways(op).items():
                    row, left = self._checked(op, enqueue, truth, left, options)
                    modelled = {"modelled_us": round(1e6 * modelled_s(op, self.extents, gpu), 3), "model": gpu.name}
                    yield {**labels, "by": library, **row, **modelled}
            self._keep(before, left)

    def truth(self, op: AnyOp) -> Arrays:
        """What the operation writes, in fp64; NaN where it writes nothing."""
        wide = {name: _wide(self.host[name]) for name in op.reads()}
        outputs = {name: np.full(self.extents.shape(name), np.nan) for name in op.writes()}
        with np.errstate(over="ignore", invalid="ignore"):
            op.compute(Tensors(self.extents.sizes, {**wide, **outputs}))
        return outputs

    def ways(self, op: AnyOp) -> dict[str, Callable[[], None] | BackendError]:
        """What enqueues the operation, by library, or why nothing does."""
        ways: dict[str, Callable[[], None] | BackendError] = {}
        for library, ready in {"triton": self._by_kernels, "cudnn": self._by_cudnn}.items():
            try:
                enqueue = ready(op)
            except BackendError as error:
                ways[library] = error
            else:
                ways |= {} if enqueue is None else {library: enqueue}
        return ways

    def _by_kernels(self, op: AnyOp) -> Callable[[], None]:
        device = self.backend.device
        for name, nbytes in workspaces_of(op, self.extents, sms=device.multiprocessors).items():
            self._reserve(name, nbytes)
        launches = launches_of(op, self.extents, self._address, sms=device.multiprocessors)

        def enqueue() -> None:
            for launch in launches:
                device.launch(launch.kernel, **launch.arguments)

        return enqueue

    def _by_cudnn(self, op: AnyOp) -> Callable[[], None] | None:
        chosen = self.backend.cudnn.part.chosen(op, self.extents) if self.backend.cudnn else None
        if chosen is None:
            return None
        self._reserve(WORKSPACE, chosen.workspace_bytes)
        return partial(chosen.enqueue, self.extents, self._address)

    def _checked(
        self, op: AnyOp, way: Callable[[], None] | BackendError, truth: Arrays, left: Arrays, options: Options
    ) -> tuple[Row, Arrays]:
        """The row of one library, and what the operation left there, or what is given where nothing ran."""
        if isinstance(way, BackendError):
            return {"unavailable": str(way)}, left
        for name in op.writes():
            self._put(name, _nan(self.extents, name))
        way()
        got = {name: self._read(name) for name in op.writes()}
        error = max(error_of(got[name], truth[name]) for name in op.writes())
        row: Row = {"error": error, "budget": BUDGET}
        if not error <= BUDGET:
            return {**row, "red": True}, left
        if options.dry_run:
            return row, got
        (samples_ms,) = time_ops(self.backend.device, Alone((op,), way)).values()
        return {**row, **percentiles([1e3 * ms for ms in samples_ms], "us", 3)}, got

    def _keep(self, before: Arrays, left: Arrays) -> None:
        """What later operations read: what was written, and where nothing was, what was there before."""
        for name, array in left.items():
            self.host[name] = np.where(np.isnan(array), before[name], array)
            self._put(name, self.host[name])

    def _reserve(self, name: str, nbytes: int) -> None:
        if name not in self.memory or self.memory[name].nbytes < nbytes:
            self.memory[name] = self.backend.device.allocate(padded_bytes(nbytes))
            self.backend.device.upload(self.memory[name], np.zeros(padded_bytes(nbytes), np.uint8))

    def _put(self, name: str, array: Array) -> None:
        if name not in self.memory:
            self.memory[name] = self.backend.device.allocate(padded_bytes(array.nbytes))
        self.backend.device.upload(self.memory[name], array)

    def _read(self, name: str) -> Array:
        array = np.empty(self.extents.shape(name), self.extents.of[name].dtype)
        self.backend.device.download(self.memory[name], array)
        return array

    def _address(self, name: str) -> int:
        return self.memory[name].address


@dataclass(frozen=True)
class Alone:
    """One operation by one library, as ``time_ops`` takes it."""

    ops: tuple[AnyOp, ...]
    enqueue: Callable[[], None]

    def enqueue_op(self, op: AnyOp) -> None:
        """Enqueues it."""
        self.enqueue()


def error_of(got: Array, truth: Array) -> float:
    """Relative L2 error where something is to be written; infinite where that is not what was written."""
    written = ~np.isnan(truth)
    if not np.array_equal(~np.isnan(got), written):
        return float("inf")
    wanted, found = truth[written], got[written].astype(np.float64)
    return float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), np.finfo(np.float64).tiny))


def sums_of(rows: Sequence[Row]) -> Iterator[Row]:
    """The times of all operations of a kind by each library, and of whole forwards, beside the modelled ones."""
    timed = [row for row in rows if "p50_us" in row]
    for op, by in dict.fromkeys((row["op"], row["by"]) for row in timed):
        yield {"what": "sum", "op": op, "by": by, **_sum([r for r in timed if (r["op"], r["by"]) == (op, by)])}
    for by, libraries in (("triton", ("triton",)), ("cudnn, else triton", ("cudnn", "triton"))):
        first = [_first(timed, place, libraries) for place in dict.fromkeys(row["place"] for row in timed)]
        if found := [row for row in first if row is not None]:
            yield {"what": "sum", "op": "all", "by": by, **_sum(found)}


def _first(rows: Sequence[Row], place: int, libraries: Sequence[str]) -> Row | None:
    found = {row["by"]: row for row in rows if row["place"] == place}
    return next((found[library] for library in libraries if library in found), None)


def _sum(rows: Sequence[Row]) -> Row:
    times = {name: round(sum(row[name] for row in rows), 1) for name in ("p50_us", "modelled_us")}
    return {"launches": len(rows), "us": times["p50_us"], "modelled_us": times["modelled_us"]}


def gpu_like(device: Any) -> Gpu:
    """The modelled GPU of the device's name; the first where none is."""
    name = str(getattr(device, "name", ""))
    return next((gpu for gpu in GPUS if gpu.name.removeprefix("RTX ") in name), GPUS[0])


def _nan(extents: Extents, name: str) -> Array:
    extent = extents.of[name]
    return np.full(extent.nbytes, 0xFF, np.uint8).view(extent.dtype).reshape(extent.shape)


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind == "f" else array
