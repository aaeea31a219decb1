"""One bundle on one backend: its parity first, then groups of rows, each measured when one of them is first asked for.

Everything is measured by :mod:`saishiki.runtime.bench`, whose command takes all groups in one go.
"""

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

from saishiki.runtime.backends import open_backend
from saishiki.runtime.bench.images import Task, image_rows, task_of
from saishiki.runtime.bench.memory import gpu_bytes_used, memory_of
from saishiki.runtime.bench.modules import module_rows
from saishiki.runtime.bench.plan import Plan
from saishiki.runtime.bench.runners import Runner
from saishiki.runtime.bench.schema import Row
from saishiki.runtime.bench.starts import ColdStarts, cold_starts, load_rows
from saishiki.runtime.bench.throughput import batch_rows, caller_rows
from saishiki.runtime.bench.watched import WatchedBackend, open_watched
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.colorizer import Colorizer
from saishiki.runtime.parity import measure


class RedParityError(Exception):
    """A backend does not compute what the checkpoint computes, so it is not timed."""


@dataclass
class Measured:
    """Owns the loaded engines until it is closed."""

    bundle: Bundle
    runner: Runner
    plan: Plan
    _open: ExitStack = field(default_factory=ExitStack)

    def row(self, group: str, subject: str, part: str = "", sizes: Mapping[str, int] | None = None) -> Row:
        """The row of a group; raises ``RedParityError`` where the bundle's vectors are red here, before any is timed.

        Args:
            sizes: those that the row must have, of all its sizes; where several rows fit, the first counts.
        """
        wanted = dict(sizes or {}).items()
        found = [
            row
            for row in self._rows(group)
            if (row.subject, row.part) == (subject, part) and wanted <= dict(row.sizes).items()
        ]
        if not found:
            raise ValueError(f"{self.runner} has no row {subject} {part} {dict(wanted)}; it has: {self._names(group)}")
        return found[0]

    def _names(self, group: str) -> str:
        return "; ".join(map(str, self._rows(group)))

    def _rows(self, group: str) -> tuple[Row, ...]:
        assert self.parity
        rows: tuple[Row, ...] = getattr(self, group)
        return rows

    @cached_property
    def parity(self) -> bool:
        """True; raises ``RedParityError`` where it is not."""
        with closing(open_backend(self.bundle, self.runner.backend, self.runner.device)) as backend:
            precisions = (self.runner.precision,)
            whole = self.runner.backend == "onnxruntime"
            certificate = measure(self.bundle, backend, precisions=precisions, only_profiles=not whole, versions={})
        if certificate.verdict == "failed":
            red = [f"{row.module} {row.error:.2g} > {row.budget:.2g}" for row in certificate.rows if not row.passed]
            raise RedParityError(f"{self.runner}: parity is red, so nothing is timed: {', '.join(red) or 'images'}")
        return True

    @cached_property
    def task(self) -> Task:
        return task_of(self.bundle.manifest, self.plan)

    @cached_property
    def cold(self) -> ColdStarts:
        return cold_starts(self.bundle, self.runner, self.task, self.plan)

    @property
    def cold_start(self) -> tuple[Row, ...]:
        return self.cold.rows

    @cached_property
    def load(self) -> tuple[Row, ...]:
        return load_rows(self.bundle, self.runner, self.task, self.plan)

    @cached_property
    def images(self) -> tuple[Row, ...]:
        return image_rows(self._loaded.colorizer, self._loaded.watched, self.task, self.plan)

    @cached_property
    def modules(self) -> tuple[Row, ...]:
        """Every module at the sizes that the first profile is tuned for."""
        tuned = self.bundle.manifest.profiles[0]
        profiles = (replace(tuned, min=tuned.opt, max=tuned.opt),)
        return module_rows(self._loaded.watched.modules, profiles, self.plan)

    @cached_property
    def batches(self) -> tuple[Row, ...]:
        return batch_rows(self._loaded.colorizer, self.task, self.plan)

    @cached_property
    def callers(self) -> tuple[Row, ...]:
        return caller_rows(self._loaded.colorizer, self.task, self.plan)

    def memory(self) -> dict[str, int | None]:
        """Bytes of weights, activations and peaks; None for what cannot be told."""
        peak, gpu = self.cold.peak_rss_bytes, self._loaded.gpu_bytes
        precision, watched = self.runner.precision, self._loaded.watched
        return asdict(memory_of(self.bundle, watched, precision, peak_rss_bytes=peak, gpu_bytes=gpu))

    @cached_property
    def _loaded(self) -> "_Loaded":
        """The engines, after a first image."""
        before = gpu_bytes_used(self.runner)
        colorizer, watched = self._open.enter_context(open_watched(self.bundle, self.runner))
        self.task(colorizer)
        after = gpu_bytes_used(self.runner)
        return _Loaded(colorizer, watched, None if before is None or after is None else after - before)

    def close(self) -> None:
        """Frees the engines."""
        self._open.close()


@dataclass(frozen=True)
class _Loaded:
    """A colorizer on a watched backend, and what the GPU had less free afterwards."""

    colorizer: Colorizer
    watched: WatchedBackend
    gpu_bytes: int | None
