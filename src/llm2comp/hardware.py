"""What the machine computes natively."""

from pathlib import Path

import torch

_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def native_bfloat16() -> bool:
    """Tell whether bfloat16 products are native; emulated ones are ruinously slow."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return not _BFLOAT16_FLAGS.isdisjoint(_processor_flags())


def _processor_flags() -> frozenset[str]:
    """Return the words of ``/proc/cpuinfo``, the processor's flags among them."""
    try:
        return frozenset(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:  # not Linux: there is no public way to ask, so stay on the safe side
        return frozenset()


def compute_dtype(name: str) -> torch.dtype:
    """Return the dtype a recipe names; ``auto`` is bfloat16 where it is native, else float32."""
    if name == "auto":
        return torch.bfloat16 if native_bfloat16() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
