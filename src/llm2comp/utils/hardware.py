"""What the machine computes natively, and how the process keeps memory."""

import ctypes
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Names of glibc's ``malloc.h``."""


def native_bfloat16() -> bool:
    """Tell whether bfloat16 products are native; emulated ones are ruinously slow."""
    import torch  # here, because the command line imports this module at its start

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return not _BFLOAT16_FLAGS.isdisjoint(_processor_flags())


def _processor_flags() -> frozenset[str]:
    """Return the words of ``/proc/cpuinfo``, the processor's flags among them."""
    try:
        return frozenset(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:  # not Linux: there is no public way to ask, so stay on the safe side
        return frozenset()


def compute_dtype(name: str) -> "torch.dtype":
    """Return the dtype of a precision; ``auto`` is bfloat16 where it is native, else float32."""
    import torch

    if name == "auto":
        return torch.bfloat16 if native_bfloat16() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def retain_freed_memory() -> None:
    """Keep freed memory for the next batch, instead of returning it to the system.

    Every batch needs what the batch before it needed. By default glibc returns large blocks to the
    system when they are freed, and the system clears them page by page when they are needed again:
    5 % of the time of encoding (docs/performance.md). Memory that a process once needed then stays
    with it, so this is for programs; a library should not do it unasked. It does nothing where the
    C library is not glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
