"""How the command lines end on an error: one readable line on stderr and exit code 1, never a traceback."""

import functools
import os
from collections.abc import Callable
from typing import Any

import click

from saishiki.runtime.errors import SaishikiError


def exit_on_error(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turns the errors that a user can do something about into a message.

    ``SAISHIKI_TRACEBACK=1`` lets them through, for reports of what looks like our own mistake.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (SaishikiError, ValueError, OSError) as error:
            if os.environ.get("SAISHIKI_TRACEBACK") == "1":
                raise
            raise click.ClickException(str(error)) from error

    return wrapped
