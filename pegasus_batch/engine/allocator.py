"""How the C library treats memory that was freed. Nothing here does anything where it is not glibc."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE, _MOST = 1 << 18, 1 << 25  # bytes


def keep_freed_memory() -> None:
    """Let glibc keep large blocks that are freed, for the whole process.

    By itself it maps a block above 32 MB anew each time, and the system fills it with zeros page by page as it is first
    written: the logits of a step of a few documents are such a block, and writing them took longer than computing them.
    """
    _set(1 << 30, (1 << 31) - 1)


def return_freed_memory() -> None:
    """Give free memory back to the system, and from now on every large block as soon as it is free.

    So while a model is loaded: of each weight the first form is freed, in whose place nothing else has its size.
    """
    _set(_LARGE, _LARGE)
    library = _library()
    if library is not None:
        library.malloc_trim(0)


def _set(mapped: int, trimmed: int) -> None:
    """Let blocks above ``mapped`` bytes have a mapping of their own, and the heap end in at most ``trimmed`` free ones."""
    library = _library()
    if library is not None:
        if not library.mallopt(_M_MMAP_THRESHOLD, mapped):
            library.mallopt(_M_MMAP_THRESHOLD, _MOST)  # older releases refuse more
        library.mallopt(_M_TRIM_THRESHOLD, trimmed)


def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
