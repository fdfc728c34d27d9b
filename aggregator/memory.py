"""Keeps the C allocator from hoarding memory. No result depends on it; without glibc nothing happens.

glibc gives every thread a heap of its own and keeps memory that is freed there. With one thread a transfer and buffers
of a megabyte, an aggregator would grow with the number of sites that ever called at once.
"""

import ctypes

_M_ARENA_MAX = -8  # malloc.h
_ARENAS = 2

_libc = ctypes.CDLL(None)


def share_heaps() -> None:
    """Let all threads share a few heaps; call it before there are threads."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, _ARENAS)


def trim() -> None:
    """Give freed memory back to the system."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
