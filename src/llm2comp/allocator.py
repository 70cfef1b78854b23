"""What the C library does with memory that is freed."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Of ``malloc.h``."""


def keep_freed() -> None:
    """Keep freed memory for what comes next, instead of giving it back to the system.

    Every batch needs what the one before it needed, and by default glibc returns large blocks when
    they are freed, so that the system hands them out again and clears them page by page: 5 % of the
    time of encoding (docs/performance.md). What a process once needed stays its own, so this is for
    programs, not for a library to do unasked. Elsewhere than on glibc it does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
