"""What the machine computes natively."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def native_bfloat16() -> bool:
    """Tell whether bfloat16 products are native; emulated ones are ruinously slow."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux: no public way to ask, so stay on the safe side
        return False
    return not _BFLOAT16_FLAGS.isdisjoint(cpuinfo.split())


SHORT = 160
"""Texts up to so many tokens train with plain attention; the gain was measured at 72 tokens."""


def training_attention(longest: int) -> AbstractContextManager[None]:
    """Return the context in which to train on texts of at most ``longest`` tokens.

    On a processor, the backward pass of PyTorch's flash attention takes a quarter of
    a training step on short texts; with plain attention a step costs about a sixth
    less, in memory that grows with the square of the length.
    """
    if torch.cuda.is_available() or longest > SHORT:
        return nullcontext()
    return sdpa_kernel(SDPBackend.MATH)


def compute_dtype(name: str) -> torch.dtype:
    """Return the dtype a recipe names; ``auto`` is bfloat16 where it is native, else float32."""
    if name == "auto":
        return torch.bfloat16 if native_bfloat16() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
