from dataclasses import dataclass, field

import pytest

from saishiki.runtime.backends.op_times import time_ops


@dataclass(frozen=True)
class Mark:
    ms: float

    def wait(self):
        pass

    def ms_since(self, earlier):
        return self.ms - earlier.ms


@dataclass
class Device:
    """Work takes as long as its name says; a replay takes one millisecond besides."""

    ms: float = 0.0
    log: list = field(default_factory=list)
    recording: list | None = None

    def enqueue(self, op):
        if self.recording is None:
            self.ms += op.ms
            self.log.append(op.name)
        else:
            self.recording.append(op)

    def capture(self, work):
        self.log.append("capture")
        self.recording = recorded = []
        work()
        self.recording = None

        def replay():
            self.log.append(f"replay of {len(recorded)} {recorded[0].name}")
            self.ms += 1.0 + sum(op.ms for op in recorded)

        return replay

    def mark(self):
        return Mark(self.ms)

    def synchronize(self):
        self.log.append("synchronize")


@dataclass(frozen=True)
class Op:
    name: str
    ms: float


@dataclass
class Execution:
    device: Device
    ops: tuple

    def enqueue_op(self, op):
        self.device.enqueue(op)


def test_each_operation_is_timed_alone_behind_those_it_reads_from():
    device = Device()
    short, long = Op("short", 0.1), Op("long", 3.0)
    times = time_ops(device, Execution(device, (short, long)), repeats=4, replays=2)
    assert list(times) == [short, long]
    assert times[short] == (pytest.approx(0.1 + 1 / 4),) * 2
    assert times[long] == (pytest.approx(3.0 + 1 / 4),) * 2
    one = ["short", "synchronize", "capture", *["replay of 4 short"] * 3]
    assert device.log == [*one, *(line.replace("short", "long") for line in one)]
