"""What a checkpoint's metadata states: values as JSON, as safetensors files hold text only."""

import json
from typing import Any

from saishiki.models.checkpoints import Checkpoint, CheckpointError


def stated(checkpoint: Checkpoint, name: str, *inner: str) -> Any:
    """The value of a name in the metadata, or of a name within it; None where it states none."""
    text = checkpoint.metadata.get(name)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        # Plain text, such as eps, is no JSON.
        value = text
    for key in inner:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def stated_width(checkpoint: Checkpoint, name: str, *inner: str) -> int | None:
    """Like :func:`stated_number`, of a whole number."""
    value = stated_number(checkpoint, name, *inner)
    if value is not None and value != int(value):
        raise _not_as_expected(checkpoint, value, (name, *inner), "whole number")
    return None if value is None else int(value)


def stated_number(checkpoint: Checkpoint, name: str, *inner: str) -> float | None:
    """The positive number that the metadata states, or None where it states none.

    Raises ``CheckpointError`` where it states something else.
    """
    value = stated(checkpoint, name, *inner)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise _not_as_expected(checkpoint, value, (name, *inner), "positive number")
    return value


def _not_as_expected(checkpoint: Checkpoint, value: object, names: tuple[str, ...], expected: str) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.path}: its metadata states {value!r} as {'.'.join(names)}, expected a {expected}: correct it"
    )
