"""GPUs by name: their memory, and how fast they multiply matrices."""

from dataclasses import dataclass
from typing import Literal

import torch

from llm2comp.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """What its maker says of a GPU.

    Attributes:
        name: as it is given to `llm2comp plan --gpu`.
        memory: in bytes.
        float32: operations a second of dense matrix products in float32.
        bfloat16: the same in bfloat16; None if the GPU has no bfloat16.
    """

    name: str
    memory: float
    float32: float
    bfloat16: float | None

    @property
    def precision(self) -> Literal["bfloat16", "float32"]:
        """What `backbone.dtype: auto` is there."""
        return "float32" if self.bfloat16 is None else "bfloat16"

    def flops(self, dtype: torch.dtype) -> float:
        """Return operations a second of dense matrix products of a type."""
        fast = self.bfloat16 if dtype == torch.bfloat16 else None
        return self.float32 if fast is None else fast


UTILISATION = 0.35
"""Share of a GPU's operations a second that training reaches. It is an assumption, not a
measurement: published runs of models of 1B to 70B reach 0.3 to 0.5."""

# Name, GiB, and TFLOP/s in float32 and bfloat16 without sparsity, from the makers' data sheets.
# Nothing is trained in TF32 here, nor in float16, for which the sheet of a T4 has 65.
_TABLE = [
    ("T4", 16, 8.1, None),
    ("L4", 24, 30.3, 121),
    ("A10", 24, 31.2, 125),
    ("RTX3090", 24, 35.6, 71),
    ("RTX4090", 24, 82.6, 165),
    ("L40S", 48, 91.6, 362),
    ("A100-40GB", 40, 19.5, 312),
    ("A100-80GB", 80, 19.5, 312),
    ("H100-80GB", 80, 67, 989),
    ("H200-141GB", 141, 67, 989),
    ("B200-180GB", 180, 75, 2250),
]
GPUS = {
    name: Gpu(name, memory * 2**30, slow * 1e12, None if fast is None else fast * 1e12)
    for name, memory, slow, fast in _TABLE
}
"""GPUs by name."""


def gpu_named(name: str) -> Gpu:
    """Return a GPU, given its name or the start of it, such as `H200`, in any case.

    Raises:
        UserError: if it is not in the table, or several names begin like this.
    """
    by_name = {known.lower(): gpu for known, gpu in GPUS.items()}
    wanted = name.lower()
    if wanted in by_name:
        return by_name[wanted]
    found = [gpu for known, gpu in by_name.items() if wanted and known.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(gpu.name for gpu in found)
        raise UserError(f"GPU {name!r} may be {names}; give its whole name")
    raise UserError(f"GPU {name!r} is not known; give one of {', '.join(GPUS)}")
