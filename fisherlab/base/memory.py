"""The memory limit of the analysis at hand, of which every piece of work takes a part."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

DEFAULT = 4 * 2**30
"""Bytes, where no limit is given: of every analysis, and of operators that are used by themselves."""

_HEAP_BLOCK, _HEAP_PARTS = 32 * 2**20, 128  # the most that glibc's heap takes as one block, of 4 GiB
_LEAST = 2**20
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the numbers of glibc's parameters

_limit: ContextVar[int] = ContextVar("memory limit", default=DEFAULT)


@contextmanager
def limited(to: int) -> Iterator[None]:
    """Inside, the pieces of work are cut for this limit in bytes."""
    token = _limit.set(to)
    short = to < DEFAULT
    if short:
        _largest_in_heap(at_most(_HEAP_BLOCK, _HEAP_PARTS))
    try:
        yield
    finally:
        _limit.reset(token)
        if short:
            _largest_in_heap(at_most(_HEAP_BLOCK, _HEAP_PARTS))


def limit() -> int:
    """The limit, in bytes."""
    return _limit.get()


def at_most(size: int, parts: int) -> int:
    """The bytes that a piece of work may take: `size`, but no more than one of so many parts of the limit.

    Nor less than 1 MiB: smaller pieces take time, and are little beside torch itself.
    """
    return min(size, max(_LEAST, _limit.get() // parts))


def _largest_in_heap(size: int) -> None:
    """Has malloc give larger blocks pages of their own, which go back to the system at once.

    By itself glibc lets its heap take blocks up to 32 MiB: fast, for pages are used again, but in a
    comparison half a GiB lay free between blocks in use.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, size)
    libc.mallopt(_TRIM_THRESHOLD, 2 * size)  # as glibc has it
