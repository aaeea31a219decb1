"""What an export asks of the C library: that memory goes back once what it held has been used."""

import ctypes
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""``mallopt``'s parameters, from glibc's ``malloc.h``."""
_LARGE_BYTES = 2**20


def return_freed_memory() -> None:
    """Has glibc give large blocks back to the system when they are freed, for the rest of this process.

    By default it comes to keep blocks of up to 32 MB, between which small live objects then scatter: a network that is
    read one weight at a time leaves gigabytes behind. Other C libraries are left as they are.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)


def return_garbage() -> None:
    """Frees what nothing refers to any more, and gives the system what is free between live objects too."""
    gc.collect()
    _trim()


@contextmanager
def returning_memory(give_back: Callable[[], None], *, every_s: float = 0.2) -> Iterator[None]:
    """Gives the system what is free, again and again and at the end, and calls ``give_back`` for what else may go.

    For a library that takes long in one call, without Python's lock, such as TensorRT's builder. It frees blocks that
    lie between live ones, which glibc keeps; the call comes back too late to ask for them.
    """
    ended = threading.Event()

    def run() -> None:
        last = False
        while not last:
            last = ended.wait(every_s)
            give_back()
            _trim()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _trim() -> None:
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
