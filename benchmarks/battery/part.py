"""What a part of the battery is: rows as they come, within a number of seconds."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class SkippedError(Exception):
    """A part that has nothing to do here; the message says what it needs."""


@dataclass(frozen=True)
class Options:
    """What the parts are told.

    Args:
        bundle: a bundle of AnimeDiffusion, whose engines are tried.
        plans: what ``executor_window/cpu_plans.py`` wrote on a CPU.
        earlier: the part's rows of a run that was stopped, so that it can go on behind them.
    """

    dry_run: bool
    bundle: Path | None = None
    plans: Path | None = None
    earlier: tuple[Row, ...] = ()

    @property
    def device(self) -> str:
        return "cpu" if self.dry_run else "cuda"

    @property
    def size_px(self) -> int:
        return 32 if self.dry_run else 256

    @property
    def steps(self) -> int:
        return 3 if self.dry_run else 10


@dataclass(frozen=True)
class Part:
    """Something to measure.

    Args:
        where: ``module:function``; imported only in the process that runs the part.
        limit_s: when it is killed; its rows are kept.
        least_s: it is not started with less time left than this.
        needs_gpu: why a dry run leaves it out, or "".
        continues: it goes on behind ``Options.earlier`` instead of beginning anew.
    """

    where: str
    limit_s: int
    answers: str
    least_s: int = 10
    needs_gpu: str = ""
    continues: bool = False

    def load(self) -> Callable[[Options], Iterator[Row]]:
        """The function."""
        module, _, name = self.where.partition(":")
        function: Callable[[Options], Iterator[Row]] = getattr(importlib.import_module(module), name)
        return function
