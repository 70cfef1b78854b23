"""Measures what a piece of a training step needs: the memory of its tensors, and its operations."""

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

REPEATS = 3
"""Times that a step is timed. The shortest counts: other programs only make it longer."""


@dataclass(frozen=True)
class Need:
    """What a piece of a step needs.

    Attributes:
        bytes: the most that the tensors it makes take at once.
        flops: floating-point operations of its matrix products.
        seconds: its time on this machine.
    """

    bytes: float
    flops: float
    seconds: float

    def extended(self, other: "Need", times: float) -> "Need":
        """Return this need plus so many times the difference of another one to it."""
        return Need(
            *(
                one + times * (two - one)
                for one, two in zip(vars(self).values(), vars(other).values(), strict=True)
            )
        )


def count(run: Callable[[], None], model: nn.Module) -> Need:
    """Return the memory and the operations of a function, without its time.

    Args:
        run: makes tensors and frees them again; on the device `meta` it takes no time.
        model: what it runs. Its weights are not counted.
    """
    with _Meter(model) as meter:
        run()
    return Need(meter.peak, meter.flops, 0.0)


def measure(run: Callable[[], None], model: nn.Module) -> Need:
    """Return the memory, the operations and the time of a function.

    Args:
        run: as `count` takes it.
        model: as `count` takes it.
    """
    counted = count(run, model)
    return replace(counted, seconds=min(_seconds(run) for _ in range(REPEATS)))


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are made in a block and are still there, and operations.

    Args:
        model: whose weights are not counted, although views of them are made.

    Attributes:
        peak: the most bytes at any time.
        flops: operations of matrix products, as torch counts them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.flops = self._now = 0
        tensors = [*model.parameters(), *model.buffers()]
        self._known = {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        made = func(*args, **options)
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.flops += count(*args, **options, out_val=made)
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self._count(value)
        return made

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size
