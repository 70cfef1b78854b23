"""GPUs by name: their memory, and how fast they multiply matrices."""

from dataclasses import dataclass
from typing import Literal

from llm2comp.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """What its maker says of a GPU.

    Attributes:
        name: as it is given to `llm2comp plan --gpu`.
        memory: in bytes.
        flops: operations a second of dense matrix products in `precision`.
        precision: what `backbone.dtype: auto` is there. Without native bfloat16 it is float32.
    """

    name: str
    memory: float
    flops: float
    precision: Literal["bfloat16", "float32"] = "bfloat16"


UTILISATION = 0.35
"""Share of a GPU's operations a second that training reaches. It is an assumption, not a
measurement: published runs of models of 1B to 70B reach 0.3 to 0.5."""

_TABLE = [  # name, GiB, TFLOP/s in bfloat16 without sparsity, from the makers' data sheets
    ("L4", 24, 121),
    ("A10", 24, 125),
    ("RTX3090", 24, 71),
    ("RTX4090", 24, 165),
    ("L40S", 48, 362),
    ("A100-40GB", 40, 312),
    ("A100-80GB", 80, 312),
    ("H100-80GB", 80, 989),
    ("H200-141GB", 141, 989),
    ("B200-180GB", 180, 2250),
]
GPUS = {
    # The 65 TFLOP/s of its data sheet are those of float16, in which nothing is trained here.
    "T4": Gpu("T4", 16 * 2**30, 8.1e12, "float32"),
    **{name: Gpu(name, memory * 2**30, speed * 1e12) for name, memory, speed in _TABLE},
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
