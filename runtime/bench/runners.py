"""Which backends a benchmark runs on: those that work here, or those that are named."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import get_args

from saishiki.runtime.backends import Backend, diagnose, open_backend
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BackendError
from saishiki.runtime.manifest import Precision

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class Runner:
    """A backend on a device in a precision."""

    backend: str
    device: str
    precision: Precision

    def __str__(self) -> str:
        return f"{self.backend}:{self.device}:{self.precision}"


@dataclass(frozen=True)
class Chosen:
    """What to measure, the fastest kind first; why others are left out; and whether somebody named what he wants."""

    runners: tuple[Runner, ...]
    skipped: Mapping[str, str]
    named: bool


def runners_named(bundle: Bundle, names: Sequence[str]) -> Chosen:
    """The runners of names such as ``onnxruntime:cpu``, ``tensorrt-rtx:cuda:1`` or ``onnxruntime:cuda:fp16``.

    Without a device it is what the backend is for, without a precision what it runs best. Raises ``ValueError`` for a
    name that means nothing, ``BackendError`` for one that cannot run this bundle here.
    """
    runners = []
    for name in names:
        backend, device, precision = _parsed(name)
        with closing(open_backend(bundle, backend, device)) as opened:
            chosen = precision or opened.default_precision
            _check(opened, bundle, chosen)
        runners.append(Runner(backend, device, chosen))
    return Chosen(tuple(dict.fromkeys(runners)), {}, named=True)


def runners_here(bundle: Bundle, *, best_precision_only: bool) -> Chosen:
    """Every backend that can run this bundle here, in every precision it can, its best one first.

    Raises ``BackendError`` with every reason where there is none.
    """
    runners: list[Runner] = []
    skipped: dict[str, str] = {}
    for place, reason in diagnose().items():
        backend, device = place.split(" on ")
        try:
            if reason is not None:
                raise BackendError(reason)
            found = tuple(_runners_of(bundle, backend, device))
            runners += found[:1] if best_precision_only else found
        except BackendError as error:
            skipped[f"{backend}:{device}"] = str(error)
    if not runners:
        reasons = "; ".join(f"{place}: {reason}" for place, reason in skipped.items())
        raise BackendError(f"no backend can run this bundle here; {reasons}")
    return Chosen(tuple(runners), skipped, named=False)


def _runners_of(bundle: Bundle, backend: str, device: str) -> Iterator[Runner]:
    """A backend in every precision; raises ``BackendError`` where it cannot run its best one."""
    with closing(open_backend(bundle, backend, device)) as opened:
        best = opened.default_precision
        _check(opened, bundle, best)
        yield Runner(backend, device, best)
        for precision in PRECISIONS:
            if precision != best and _can_run(opened, bundle, precision):
                yield Runner(backend, device, precision)


def _can_run(backend: Backend, bundle: Bundle, precision: Precision) -> bool:
    try:
        _check(backend, bundle, precision)
    except BackendError:
        return False
    return True


def _check(backend: Backend, bundle: Bundle, precision: Precision) -> None:
    """Raises ``BackendError`` where a module has nothing for the backend, or no module is in this precision."""
    modules = bundle.manifest.modules
    if not any(precision in module.graphs for module in modules.values()):
        raise BackendError(f"{bundle.path}: no module has a graph in {precision}; export again")
    for name, module in modules.items():
        backend.check(bundle, name, module.closest(precision))


def _parsed(name: str) -> tuple[str, str, Precision | None]:
    """Backend, device and precision of ``backend[:device][:precision]``."""
    backend, *rest = name.strip().split(":")
    precision = next((known for known in PRECISIONS if rest and rest[-1] == known), None)
    device = ":".join(rest[:-1] if precision else rest)
    if not backend or (rest and not all(rest)):
        raise ValueError(
            f"unknown runner {name!r}; expected backend[:device][:precision], such as onnxruntime:cpu:fp32"
        )
    return backend, device or ("cpu" if backend == "onnxruntime" else "cuda"), precision
