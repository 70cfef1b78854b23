"""The precision that the processor computes natively, and memory that is freed or kept."""

import ctypes
import gc
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}

# The numbers that glibc's malloc.h gives to M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_MMAP_MAX.
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_MMAP_MAX = -4

_retains = False
"""Whether `retain_freed_memory` was called."""


def native_bfloat16() -> bool:
    """Return whether the hardware multiplies bfloat16 natively.

    Without native support it is emulated, which is far slower than float32.
    """
    import torch  # here, because the command line imports this module when it starts

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return not _BFLOAT16_FLAGS.isdisjoint(_processor_flags())


def mkl_is_slow() -> bool:
    """Return whether oneDNN multiplies float32 faster than MKL, which PyTorch takes by itself.

    On AMD's processors MKL has kernels for AVX2 at most, and not its fastest ones.
    """
    import torch

    return (
        torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and "AuthenticAMD" in _processor_flags()
    )


def _processor_flags() -> frozenset[str]:
    """Return the words of `/proc/cpuinfo`, which include the flags of the processor."""
    try:
        return frozenset(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:  # Other systems than Linux have no such file: assume no native bfloat16.
        return frozenset()


def processor_name() -> str:
    """Return the name of the processor and, if there is one, of the GPU."""
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(named, "") or platform.processor() or platform.machine()
    return f"{name}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else name


def compute_dtype(precision: str) -> "torch.dtype":
    """Return the torch dtype of a precision.

    Args:
        precision: `float32`, `bfloat16`, or `auto`, which is bfloat16 if it is native and
            float32 otherwise.
    """
    import torch

    if precision == "auto":
        return torch.bfloat16 if native_bfloat16() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]


def free_unused_memory() -> None:
    """Free what nothing uses any more, on the processor and on the GPU.

    A trainer and its callbacks refer to each other. Without this, their model would stay in memory
    until the garbage collector happens to run, beside the model that is loaded next. glibc then
    gives the pages back to the system, which it keeps after `retain_freed_memory`.
    """
    import torch

    gc.collect()
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def retain_freed_memory() -> None:
    """Make glibc keep freed memory for the next batch.

    Every batch needs about as much memory as the batch before it. By default glibc returns large
    blocks to the system when they are freed, and the system clears them page by page when they are
    needed again. That takes 5 % of the time of encoding (docs/performance.md).

    The process then keeps the most memory that it ever needed. Programs may choose that, but a
    library must not do it unasked. With another C library than glibc nothing happens.
    """
    global _retains
    if _has_glibc():
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
        _retains = True


@contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Let glibc return large blocks to the system in a block, despite `retain_freed_memory`.

    Where tensors of many sizes are made and freed, such as the weights of a model and what is
    computed on the way to them, the blocks that are kept fit no later tensor, and the process would
    take half as much again.
    """
    if not _retains:
        yield
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_MMAP_THRESHOLD, 2**20)
    mallopt(_MMAP_MAX, 2**16)
    try:
        yield
    finally:
        retain_freed_memory()


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
