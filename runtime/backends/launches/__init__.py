"""From an operation of a plan to launches of ready-made kernels. Nothing here touches a device."""

from saishiki.runtime.backends.launches.launch import Address, Launch
from saishiki.runtime.backends.launches.table import launches_of, workspaces_of

__all__ = ["Address", "Launch", "launches_of", "workspaces_of"]
