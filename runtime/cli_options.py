"""The flags of ``colorize``: derived from the options of every family, so that neither is stated twice."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from saishiki.runtime.options import Kind, OptionSpec, defaults_of, specs_of
from saishiki.runtime.pipelines import option_types

Command = Callable[..., Any]

_OPTION_TYPES = option_types()
_SIDES = "expected a number, or height x width such as 512x768"


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """``1,0.5,1``: numbers with commas between them."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The numbers as a tuple."""
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r}: expected numbers with commas between them, such as 1,0.5,1", param, ctx)


class Size(click.ParamType):  # type: ignore[type-arg]
    """``512`` or ``512x768``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """(height, width)."""
        sides = value.split("x")
        if len(sides) > 2 or not all(side.isdecimal() for side in sides):
            self.fail(f"{value!r}: {_SIDES}", param, ctx)
        return int(sides[0]), int(sides[-1])


_TYPES: Mapping[Kind, Any] = {
    "whole": int,
    "number": float,
    "numbers": Numbers(),
    "text": str,
    "picture": click.Path(path_type=Path),
    "file": click.Path(path_type=Path),
}


def family_flags(command: Command) -> Command:
    """Gives a command a flag for every option of every family; a flag that is not used hands in None or False."""
    for name, (spec, default, owners) in reversed(_all_options().items()):
        command = click.option(_flag(name), name, help=_help(spec, default, owners), **_parameters(spec))(command)
    return command


def options_given(family: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The options among a command's flags that were used; raises ``ValueError`` for one that the family has not."""
    used = {name: value for name, value in flags.items() if value is not None and value is not False}
    known = specs_of(_OPTION_TYPES[family]) if family in _OPTION_TYPES else used
    wrong = [_flag(name) for name in used if name not in known]
    if wrong:
        flags_known = ", ".join(
            _flag(name) for name, spec in specs_of(_OPTION_TYPES[family]).items() if spec.kind != "arrays"
        )
        raise ValueError(f"{', '.join(wrong)}: not an option of {family} bundles; they have {flags_known}")
    return used


def _all_options() -> dict[str, tuple[OptionSpec, Any, tuple[str, ...]]]:
    """Every option that has a flag: what it takes, its default, and which kinds of families have it."""
    merged: dict[str, tuple[OptionSpec, Any, tuple[str, ...]]] = {}
    for kind in dict.fromkeys(_OPTION_TYPES.values()):
        defaults = defaults_of(kind)
        for name, spec in specs_of(kind).items():
            if spec.kind != "arrays":
                first, default, owners = merged.get(name, (spec, defaults[name], ()))
                merged[name] = first, default, (*owners, kind.__name__.removesuffix("Options"))
    return merged


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _parameters(spec: OptionSpec) -> dict[str, Any]:
    if spec.kind == "switch":
        return {"is_flag": True}
    return {"type": click.Choice(spec.choices) if spec.kind == "choice" else _TYPES[spec.kind], "default": None}


def _help(spec: OptionSpec, default: Any, owners: tuple[str, ...]) -> str:
    families = len(dict.fromkeys(_OPTION_TYPES.values()))
    owner = "" if len(owners) == families else f"({', '.join(owners)}) "
    shown = ",".join(f"{part:g}" for part in default) if isinstance(default, tuple) else default
    return f"{owner}{spec.help}" + ("" if default is None or default is False else f" [{shown}]")
