"""What a process sets for itself where it does nothing but training or scoring."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
_GIBIBYTE = 2**30


def keep_freed_memory() -> None:
    """Let malloc keep what is freed for its next use, up to 1 GiB, instead of giving it back.

    Every step frees and takes the same tens of megabytes; by default glibc gives such blocks back
    to the system at once, which then clears every page anew. A program's decision, not a library's:
    for the start of a command line. Does nothing where malloc is not glibc's.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return
    mallopt(_MMAP_THRESHOLD, _GIBIBYTE)
    mallopt(_TRIM_THRESHOLD, _GIBIBYTE)
    mallopt(_TOP_PAD, _GIBIBYTE // 16)
