"""The device that is checked: a GPU or, as a stand-in, the processor.

Everything that only a GPU has is here, so that the checks themselves are the same for both.
"""

import math
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import nn

from llm2comp.training.planning.machines import GPUS, Gpu
from llm2comp.training.planning.meter import count
from llm2comp.utils.hardware import processor_name

STAND_IN = Gpu("stand-in", 80 * 2**30, 1e12, 1e12)
"""What a plan for the processor takes for a GPU."""
SIMILAR = 0.15
"""A card of a known name may have so much more or less memory than its data sheet says."""


@dataclass(frozen=True)
class Peak:
    """The most memory at once, in bytes.

    Attributes:
        allocated: by tensors. On a processor, it is counted tensor by tensor.
        reserved: by PyTorch's allocator; on a processor the same as `allocated`.
    """

    allocated: float
    reserved: float


def device() -> torch.device:
    """Return the device that training takes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Wait until the device has done all that it was given."""
    torch.get_device_module(device()).synchronize()


def peak_of(run: Callable[[], object]) -> Peak:
    """Run something, and return the most memory that it had at once.

    Args:
        run: it should begin and end with an empty device.
    """
    module = torch.get_device_module(device())
    if not hasattr(module, "max_memory_allocated"):
        allocated = count(lambda: _without_result(run), nn.Module()).bytes
        return Peak(allocated, allocated)
    module.synchronize()
    module.empty_cache()
    module.reset_peak_memory_stats()
    run()
    module.synchronize()
    return Peak(module.max_memory_allocated(), module.max_memory_reserved())


def allocated() -> float | None:
    """Return the bytes that tensors take on the device now; None on a processor."""
    module = torch.get_device_module(device())
    return module.memory_allocated() if hasattr(module, "memory_allocated") else None


def _without_result(run: Callable[[], object]) -> None:
    run()


def gpu_here() -> Gpu:
    """Return the GPU that is checked as `llm2comp plan --gpu` knows it, with its real memory.

    The speed of a card that the plan does not know is NaN.
    """
    if device().type == "cpu":
        return STAND_IN
    properties = torch.get_device_module(device()).get_device_properties(0)
    known = known_gpu(properties.name, properties.total_memory)
    if known is None:
        return Gpu(properties.name, properties.total_memory, math.nan, math.nan)
    return replace(known, name=properties.name, memory=properties.total_memory)


def known_gpu(name: str, memory: float) -> Gpu | None:
    """Return the GPU of the plan's table with a name and a memory; None if there is none.

    Args:
        name: as PyTorch calls it, for example `NVIDIA H100 80GB HBM3`.
        memory: in bytes.
    """
    words = name.replace("RTX ", "RTX").replace("-", " ").split()
    for gpu in GPUS.values():
        if gpu.name.partition("-")[0] in words and abs(memory / gpu.memory - 1) < SIMILAR:
            return gpu
    return None


def describe() -> dict[str, Any]:
    """Return what the numbers depend on: the card, its driver, and versions."""
    about: dict[str, Any] = {
        "machine": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    if device().type == "cpu":
        return about | {"card": "none: the processor stands in", "driver": "none"}
    properties = torch.get_device_module(device()).get_device_properties(0)
    return about | {
        "card": properties.name,
        "card memory (GB)": round(properties.total_memory / 1e9, 1),
        "driver": _driver(),
        "cuda": str(torch.version.cuda or torch.version.hip),
    }


def _driver() -> str:
    """Return the version of the driver, as nvidia-smi says it."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return "unknown"
    asked = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=20)
    return next(iter(done.stdout.split()), "unknown")
