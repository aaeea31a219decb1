"""What the processes that an export starts have in common: they end with it, and it says how they ended."""

import ctypes
import resource
import signal
from collections.abc import Mapping

_PR_SET_PDEATHSIG = 1
_ADVICE: Mapping[signal.Signals, str] = {signal.SIGKILL: "most often the machine ran out of memory"}


def die_with_parent() -> None:
    """Has Linux kill this process when its parent ends: a killed export must not leave anything running."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def leave_no_core_file() -> None:
    """For a process that may crash, which would leave a file of several GB."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def how_it_ended(returncode: int, advice: Mapping[signal.Signals, str] | None = None) -> str:
    """``ended with status 3``, or ``was killed by SIGKILL (most often the machine ran out of memory)``.

    Args:
        returncode: as :mod:`subprocess` gives it, negative for a signal.
        advice: what else is known of some signals.
    """
    if returncode >= 0:
        return f"ended with status {returncode}"
    number = signal.Signals(-returncode)
    known = {**_ADVICE, **(advice or {})}
    return f"was killed by {number.name}" + (f" ({known[number]})" if number in known else "")
