"""What an export asks of the C library: that a weight's memory goes back once the weight has been used."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""``mallopt``'s parameters, from glibc's ``malloc.h``."""
_LARGE_BYTES = 2**20


def return_freed_memory() -> None:
    """Has glibc give large blocks back to the system when they are freed, for the rest of this process.

    By default it comes to keep blocks of up to 32 MB, between which small live objects then scatter: a network that is
    read one weight at a time leaves gigabytes behind. Other C libraries are left as they are.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)
