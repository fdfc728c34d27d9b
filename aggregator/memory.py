"""Keep the C allocator from hoarding. Nothing here changes what is computed; without glibc nothing happens.

glibc gives every thread a heap of its own and keeps what is freed there. With one thread a transfer and buffers of a
megabyte, an aggregator would grow with the number of sites that ever spoke at once.
"""

import ctypes

_M_ARENA_MAX = -8  # malloc.h
_ARENAS = 2

_libc = ctypes.CDLL(None)


def share_heaps() -> None:
    """Let all threads share a few heaps. To be called before there are threads."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, _ARENAS)


def trim() -> None:
    """Give freed memory back to the system."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
