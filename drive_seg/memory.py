"""Memory that is freed and wanted again a moment later."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# Of malloc.h: what mallopt sets.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Keep what this process frees, for its next allocation, instead of handing it back to the operating system.

    A training step on a CPU allocates and frees the same hundreds of megabytes again and again. The GNU C library maps
    every large block afresh, and the system fills each of its pages with zeros first, which takes a quarter of a
    step. Kept, the memory stays with the process until it ends; its peak grows by a tenth or two.

    Returns:
        Whether the C library is one that knows how; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    # Never a mapping of its own for a large block, and never the end of the heap given back.
    return library.mallopt(_M_MMAP_MAX, 0) == 1 and library.mallopt(_M_TRIM_THRESHOLD, -1) == 1
