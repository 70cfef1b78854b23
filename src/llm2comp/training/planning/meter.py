"""Measures what a piece of a training step needs: the memory of its tensors, and its operations."""

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


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


def measure(run: Callable[[], None], repeats: int = 2) -> Need:
    """Return what a function needs, which makes tensors and frees them again.

    Args:
        run: is called once to allocate memory, once to count, and `repeats` times for its time.
        repeats: the shortest time counts, because other programs only make it longer.
    """
    run()
    with _Meter() as meter:
        run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return Need(meter.peak, meter.flops, min(seconds))


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are made in a block and are still there, and operations.

    Attributes:
        peak: the most bytes at any time.
        flops: operations of matrix products, as torch counts them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.flops = self._now = 0
        self._known: set[int] = set()

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
