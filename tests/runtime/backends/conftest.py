"""A GPU in numpy, an engine made of the sampler kernel, and loops to run on them."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saishiki.runtime.backends.cubins import find_cubin, packed_arguments, read_cubin_index
from saishiki.runtime.backends.cuda import INSTALL, driver_problem
from saishiki.runtime.backends.device import ROW_BYTES, Memory, padded_bytes
from saishiki.runtime.backends.protocol import DenoisingLoop
from saishiki.runtime.backends.sampler_kernel import KERNELS
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.manifest import (
    FORMAT_VERSION,
    Certificate,
    CheckpointEntry,
    EngineEntry,
    EngineKey,
    FileEntry,
    GraphEntry,
    Manifest,
    ModuleEntry,
    PrecisionPolicy,
    SamplerDefaults,
)
from saishiki.runtime.samplers import COLUMNS, Solver, ddim_solver, table_step
from saishiki.runtime.schedule import DiffusionSchedule, ddim_schedule, linear_betas, schedule_buffers
from saishiki.runtime.signature import Array, Profile, Signature, Sizes, TensorSpec

UNIT = {"batch": 1, "height": 1, "width": 1}
IMAGE = ("batch", "3", "height", "width")


def signature_of(slots: int) -> Signature:
    """A denoiser's, with the prediction of every guidance slot."""
    return Signature(
        inputs=(
            TensorSpec("noisy", "float32", IMAGE),
            TensorSpec("condition", "float32", IMAGE),
            TensorSpec("time", "float32", ("batch", str(slots * len(COLUMNS)))),
        ),
        outputs=(TensorSpec("eps", "float32", (f"{slots}*batch" if slots > 1 else "batch", *IMAGE[1:])),),
        multiples={},
    )


SIGNATURE = signature_of(1)


def step_in_numpy(x: Array, prediction: Array, row: Array, noise: Array | None = None) -> Array:
    """x after a step of the sampler kernel, from one guidance slot and without history."""
    result: Array = table_step(x, prediction, row, noise=noise)[0]
    return result


@dataclass
class NumpyDevice:
    """Device memory is a heap of bytes, full of NaN at first. Work runs when it is enqueued, or is recorded."""

    heap: Array = field(default_factory=lambda: np.full(1 << 24, 0xFF, np.uint8))
    top: int = ROW_BYTES
    target: str = "sm89"
    stream: int = 7
    log: list[str] = field(default_factory=list)
    recording: list[Callable[[], None]] | None = None

    def make_current(self) -> None:
        self.log.append("make_current")

    def allocate(self, nbytes: int) -> Memory:
        assert self.recording is None
        memory = Memory(self.top, nbytes, self)
        self.top += padded_bytes(max(nbytes, 1))
        assert self.top <= len(self.heap)
        return memory

    def view(self, address: int, shape: tuple[int, ...]) -> Array:
        return self.heap[address : address + 4 * math.prod(shape)].view(np.float32).reshape(shape)

    def upload(self, memory: Memory, array: Array) -> None:
        assert self.recording is None
        assert array.nbytes <= memory.nbytes
        self.log.append(f"upload {array.nbytes}")
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.heap[memory.address : memory.address + array.nbytes] = content

    def download(self, memory: Memory, array: Array) -> None:
        assert self.recording is None
        self.log.append("download")
        array[...] = self.view(memory.address, array.shape)

    def enqueue(self, work: Callable[[], None]) -> None:
        (work if self.recording is None else lambda: self.recording.append(work))()  # type: ignore[union-attr]

    def launch(self, name: str, **arguments: int | float) -> None:
        # The real index: names, alignment and number of the arguments are as the cubin wants them.
        entry = find_cubin(read_cubin_index(), name, self.target)
        packed_arguments(entry, arguments)
        assert name.endswith("_fp32")
        self.enqueue(lambda: self._fused_sampler_step(int(entry.constexprs["SLOTS"]), **arguments))

    def _fused_sampler_step(self, slots: int, **at: Any) -> None:
        k, n, kept = at["k"], at["n"], at["history_slots"]
        self.log.append(f"kernel {k}")
        row = self.view(at["table_ptr"] + 4 * len(COLUMNS) * k, (len(COLUMNS),))
        x, prediction = self.view(at["x_ptr"], (1, n)), self.view(at["prediction_ptr"], (slots, n))
        history, absent = self.view(at["history_ptr"], (kept, n)), np.full((1, n), np.nan, np.float32)
        x[...], x0 = table_step(
            x,
            prediction,
            row,
            noise=self.view(at["noise_ptr"], (1, n)) if at["noises"] else absent,
            x0_1=history[(k - 1) % kept][None] if kept else absent,
            x0_2=history[k % kept][None] if kept == 2 else absent,
        )
        if kept:
            history[k % kept] = x0[0]
        self.view(at["model_input_ptr"], (at["input_slots"], n))[...] = row[-1] * x

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.log.append("capture")
        recording: list[Callable[[], None]] = []
        self.recording = recording
        try:
            work()
        finally:
            self.recording = None

        def replay() -> None:
            self.log.append("replay")
            for step in recording:
                step()

        return replay

    def mark(self) -> "NumpyMark":
        assert self.recording is None
        self.log.append("mark")
        return NumpyMark(self, len(self.log))

    def synchronize(self) -> None:
        assert self.recording is None

    def close(self) -> None:
        self.log.append("close")


@dataclass
class NumpyMark:
    """A place in a device's log; its milliseconds are the lines between two of them."""

    device: NumpyDevice
    at: int

    def wait(self) -> None:
        self.device.log.append("wait")

    def ms_since(self, earlier: "NumpyMark") -> float:
        return float(self.at - earlier.at - 1)


class KernelEngine:
    """An engine that is itself the sampler kernel: eps is the x0 from ``noisy`` and ``condition`` by the row ``time``.

    A row has 13 numbers for each guidance slot, which must leave ``noisy`` as it is. The engine needs nothing but the
    cubins, so it runs on any GPU that they are for.
    """

    def __init__(self, device: Any, sizes: Sizes, *, capturable: bool = True, slots: int = 1) -> None:
        self.device, self.capturable, self.slots = device, capturable, slots
        signature = signature_of(slots)
        specs = signature.inputs + signature.outputs
        self.numbers = specs[0].nbytes(sizes) // 4
        self.memory = {spec.name: device.allocate(padded_bytes(spec.nbytes(sizes))) for spec in specs}

    def enqueue(self, addresses: Mapping[str, int]) -> None:
        at = {name: addresses.get(name, memory.address) for name, memory in self.memory.items()}
        # Alone, a slot may run over its padding; several lie one behind the other.
        n = self.memory["noisy"].nbytes // 4 if self.slots == 1 else self.numbers
        for slot in range(self.slots):
            self.device.launch(
                KERNELS[1],
                x_ptr=at["noisy"],
                prediction_ptr=at["condition"],
                table_ptr=at["time"],
                noise_ptr=0,
                history_ptr=at["eps"] + 4 * n * slot,
                model_input_ptr=0,
                k=slot,
                n=n,
                noises=0,
                history_slots=1,
                input_slots=0,
            )

    def rows(self, name: str, rows: Array) -> Array:
        return rows

    def prepare(self) -> None:
        self.device.log.append("prepare")

    def is_capturable(self) -> bool:
        return self.capturable


class KernelModule:
    """The same as :class:`KernelEngine` in host memory."""

    def __init__(self, slots: int = 1) -> None:
        self.signature = signature_of(slots)

    def __call__(self, *, noisy: Array, condition: Array, time: Array) -> dict[str, Array]:
        self.signature.sizes_from_arrays({"noisy": noisy, "condition": condition, "time": time})
        assert (time == time[0]).all()
        rows = time[0].reshape(-1, len(COLUMNS))
        return {"eps": np.concatenate([table_step(noisy, condition, row)[1] for row in rows])}


def engine_rows(weights: Array) -> Array:
    """(S, 13) rows for the engine, from (S, 2): how much of ``noisy`` and of ``condition`` is in eps."""
    rows = np.zeros((len(weights), len(COLUMNS)), np.float32)
    for name, values in {"x0_from_x": weights[:, 0], "x0_from_prediction": weights[:, 1], "x": 1.0}.items():
        rows[:, COLUMNS.index(name)] = values
    rows[:, COLUMNS.index("clamp_low")], rows[:, COLUMNS.index("clamp_high")] = -2.0, 2.0
    return rows


def draw_loop(
    *,
    steps: int = 4,
    eta: float = 1.0,
    shape: tuple[int, ...] = (2, 3, 5, 7),
    seed: int = 0,
    solver: Solver | None = None,
) -> DenoisingLoop:
    """A loop with random contents, of AnimeDiffusion's DDIM or of another solver."""
    rng = np.random.default_rng(seed)

    def normal(*lengths: int) -> Array:
        return rng.standard_normal(lengths, dtype=np.float32)

    schedule = DiffusionSchedule(schedule_buffers(linear_betas(1000, 1e-6, 1e-2)))
    solver = solver or ddim_solver(ddim_schedule(schedule, steps=steps, eta=eta))
    evaluations = len(solver.timesteps)
    rows = engine_rows(np.abs(normal(evaluations * solver.slots, 2)) + np.float32(0.5))
    return DenoisingLoop(
        solver=solver,
        state="noisy",
        x=normal(*shape) * np.float32(solver.start_scale),
        constants=({"condition": normal(*shape)},),
        per_step={"time": rows.reshape(evaluations, 1, -1)},
        noise=normal(solver.noises, *shape) if solver.noises else None,
    )


def engine_entry(
    content: bytes, *, target: str = "sm89", version: str, backend: str = "tensorrt-rtx", file: str = ""
) -> EngineEntry:
    """An engine of the denoiser in fp16 that fits the bundle of :func:`make_bundle`."""
    key = EngineKey("weights-hash", "graph-hash", "", "fp16", backend, version, target)
    entry = FileEntry(file or f"engines/denoiser.{target}", hashlib.sha256(content).hexdigest(), len(content))
    return EngineEntry(backend, target, key, f"key-{target}", entry, 0.0, 0, 0, 0)


def make_bundle(path: Path, engines: Sequence[EngineEntry], *, content: bytes = b"engine") -> Bundle:
    """A bundle with one module, the denoiser, whose engine files hold ``content``."""
    none = FileEntry("none", "", 0)
    graph = GraphEntry(FileEntry("graph", "graph-hash", 0), FileEntry("weights", "weights-hash", 0), 1, 23)
    wide = Profile({**UNIT, "width": 7}, {**UNIT, "width": 7}, {"batch": 4, "height": 12, "width": 7})
    exact = {"batch": 2, "height": 16, "width": 7}
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        saishiki_version="0",
        family="animediffusion",
        variant="published",
        prediction="eps",
        config={},
        checkpoint=CheckpointEntry("a.ckpt", "", {}),
        schedule=none,
        sampler=SamplerDefaults("ddim", 10, 1.0, "noise"),
        profiles=(wide, Profile(exact, exact, exact)),
        modules={"denoiser": ModuleEntry(SIGNATURE, {"fp16": graph}, tuple(engines))},
        precision=PrecisionPolicy("fp16", (), 0.0, ""),
        parity=none,
        certificate=Certificate("passed", "onnxruntime", {}, (), ()),
        export_command="export-engines a.ckpt --targets rtx",
    )
    for engine in engines:
        file = path / engine.file.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return Bundle(path, manifest)


@dataclass(frozen=True)
class Fakes:
    """What the tests of this folder share."""

    signature: Signature
    device: type[NumpyDevice]
    engine: type[KernelEngine]
    module: type[KernelModule]
    draw_loop: Callable[..., DenoisingLoop]
    step_in_numpy: Callable[..., Array]
    engine_entry: Callable[..., EngineEntry]
    make_bundle: Callable[..., Bundle]


@pytest.fixture
def fakes() -> Fakes:
    """The classes and functions of this file; test files cannot import one another."""
    return Fakes(
        SIGNATURE, NumpyDevice, KernelEngine, KernelModule, draw_loop, step_in_numpy, engine_entry, make_bundle
    )


@pytest.fixture
def needs_gpu() -> None:
    """Skips a test where there is no GPU, or nothing to reach it with."""
    if problem := driver_problem():
        pytest.skip(f"needs an NVIDIA GPU of compute capability 8.0 or newer: {problem}")
    pytest.importorskip("cuda.core", reason=f"needs cuda-core: {INSTALL}", exc_type=ImportError)
