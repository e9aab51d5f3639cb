"""Memory that this process freed and still holds."""

from __future__ import annotations

import ctypes
import sys


def return_freed_memory() -> None:
    """Gives memory that was freed back to the system, if the C library is glibc; others do so by themselves.

    glibc keeps freed memory for later requests. After engines are loaded that is as much as their weights again, and
    nothing as large is asked for later.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
