"""A family's options: a frozen dataclass whose fields carry their own help and bounds.

Calls of a colorizer, flags of the command line and the documentation are all derived from the one declaration::

    @dataclass(frozen=True)
    class Options:
        eta: Annotated[float, OptionSpec("number", "0 is deterministic.", low=0)] = 1.0

    options_from(Options, {"eta": 0.5}, owner="this family")
"""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar, get_type_hints

Kind = Literal["whole", "number", "numbers", "switch", "choice", "text", "picture", "file", "arrays"]
Options = TypeVar("Options")


@dataclass(frozen=True)
class OptionSpec:
    """What an option takes.

    Args:
        kind: ``picture`` is one picture or a list with one for every sketch; ``arrays`` has no flag.
        low, high: the least and the greatest number, both allowed; without either the family checks it by itself.
        choices: the words of a ``choice``.
        length: how many ``numbers``.
        optional: None is allowed, and means what the help says: so it is where None is the default.
    """

    kind: Kind
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    length: int | None = None
    optional: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raises ``TypeError`` or ``ValueError``, saying what was expected, for a value that the option cannot take."""
        if value is None and self.optional:
            return
        check = _CHECKS.get(self.kind)
        if check is not None:
            check(self, name, value)


def specs_of(kind: type[Any]) -> dict[str, OptionSpec]:
    """The options of a dataclass by name, in order."""
    hints, defaults = get_type_hints(kind, include_extras=True), defaults_of(kind)
    stated = {name: next(iter(hints[name].__metadata__)) for name in defaults}
    return {name: replace(spec, optional=defaults[name] is None) for name, spec in stated.items()}


def defaults_of(kind: type[Any]) -> dict[str, Any]:
    """The defaults of a dataclass by name, in order."""
    return {item.name: item.default for item in fields(kind)}


def options_from(kind: type[Options], given: Mapping[str, Any], *, owner: str) -> Options:
    """A family's options from what was given, each value checked by itself.

    Raises ``TypeError`` for a name that the family does not have, listing those it has, and for values of the wrong
    kind; ``ValueError`` for values out of range.
    """
    specs = specs_of(kind)
    unknown = [name for name in given if name not in specs]
    if unknown:
        raise TypeError(f"{owner} has no option {', '.join(map(repr, unknown))}; it has {', '.join(specs)}")
    options = kind(**given)
    for name, spec in specs.items():
        spec.check(name, getattr(options, name))
    return options


def _check_whole(spec: OptionSpec, name: str, value: Any) -> None:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    _check_bounds(spec, name, number)


def _check_number(spec: OptionSpec, name: str, value: Any) -> None:
    if isinstance(value, bool | str) or not _is_number(value):
        raise TypeError(f"{name} must be a number, got {value!r}")
    bounded = spec.low is not None or spec.high is not None
    if bounded and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")
    _check_bounds(spec, name, value)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _check_bounds(spec: OptionSpec, name: str, value: float) -> None:
    if (spec.low is not None and value < spec.low) or (spec.high is not None and value > spec.high):
        raise ValueError(f"{name} must be {_bounds(spec)}, got {value}")


def _bounds(spec: OptionSpec) -> str:
    if spec.high is None:
        return f"at least {spec.low:g}"
    return f"at most {spec.high:g}" if spec.low is None else f"between {spec.low:g} and {spec.high:g}"


def _check_numbers(spec: OptionSpec, name: str, value: Any) -> None:
    if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        raise TypeError(f"{name} must be {spec.length} numbers, got {value!r}")
    if len(value) != spec.length:
        raise ValueError(f"{name} must be {spec.length} numbers, got {len(value)}")
    for number in value:
        _check_number(spec, f"each of {name}", number)


def _check_switch(spec: OptionSpec, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def _check_choice(spec: OptionSpec, name: str, value: Any) -> None:
    if value not in spec.choices:
        *first, last = spec.choices
        raise ValueError(f"unknown {name} {value!r}; expected {', '.join(first)} or {last}")


_CHECKS: Mapping[Kind, Callable[[OptionSpec, str, Any], None]] = {
    "whole": _check_whole,
    "number": _check_number,
    "numbers": _check_numbers,
    "switch": _check_switch,
    "choice": _check_choice,
}
