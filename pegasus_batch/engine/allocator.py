"""How the C library treats memory that was freed."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let glibc keep large blocks that are freed, for the whole process; elsewhere it does nothing.

    By itself it maps a block above 32 MB anew each time, and the system fills it with zeros page by page as it is first
    written: the logits of a step of a few documents are such a block, and writing them took longer than computing them.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
