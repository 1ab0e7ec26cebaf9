"""Keeps freed memory in the process, where the C library would hand it back and fetch it again at every update.

glibc returns large freed blocks to the system at once. A network's activations are such blocks, allocated and freed thousands
of times, and each time the system has to clear their pages anew: about a seventh of an update, and a quarter of a
decision for many environments.
"""

import ctypes
import os
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt's settings in glibc's malloc.h
_LARGEST_KEPT, _MOST_KEPT = 64 << 20, 256 << 20


@cache
def keep_freed_memory() -> bool:
    """Raises glibc's thresholds for this process: up to 256 MB of freed memory stay in it. True where that was done.

    Does nothing on other C libraries, or where the user chose settings through the environment (MALLOC_...).
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # both: setting one alone freezes the other at its present value
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)) and bool(mallopt(_TRIM_THRESHOLD, _MOST_KEPT))
