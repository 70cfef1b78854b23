"""Processes that encode one model's batches, for machines of many cores or several sockets.

sentence-transformers has a pool of its own. Its processes run the stock model's encoding,
whatever the model's class: batches of so many texts, in the order of their characters, and
each process with as many threads as the machine has cores.
"""

import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from sentence_transformers import SentenceTransformer
from torch import multiprocessing

from llm2comp.errors import UserError
from llm2comp.utils.hardware import retain_freed_memory

Item = TypeVar("Item")
Found = TypeVar("Found")


class Workers:
    """Processes that hold a model; made by :func:`start`.

    Attributes:
        on_batch: called with the number of texts of every batch that was embedded.
    """

    def __init__(self, processes: ProcessPoolExecutor) -> None:
        self.processes = processes
        self.on_batch: Callable[[int], object] = lambda _: None

    def map(self, call: Callable[[Any, Item], Found], items: Iterable[Item]) -> Iterator[Found]:
        """Yield ``call(model, item)`` of each item in order; they are computed at the same time.

        Raises:
            UserError: if a process ended.
        """
        try:
            yield from self.processes.map(partial(_call, call), items)
        except BrokenProcessPool as error:
            raise _ended() from error


@contextmanager
def start(model: SentenceTransformer, count: int) -> Iterator[Workers]:
    """Start processes that share the model's memory and divide this one's threads.

    A script that calls this needs ``if __name__ == "__main__":`` around what it does, as the
    processes import it.

    Args:
        model: on the processor; its weights move into shared memory.
        count: of processes.

    Raises:
        UserError: if the model is not on the processor, there is too little shared memory, or a
            process does not start.
    """
    if model.device.type != "cpu":
        raise UserError(f"workers share processors, and this model is on {model.device}")
    try:
        model.share_memory()
    except RuntimeError as error:
        raise UserError(
            f"the model does not fit into shared memory ({error}); enlarge it, or do without "
            "workers"
        ) from error
    threads = max(1, torch.get_num_threads() // count)
    context = multiprocessing.get_context("spawn")
    processes = ProcessPoolExecutor(count, context, _begin, (model, threads))
    try:
        with _interrupts_held():
            ready = [processes.submit(_ready) for _ in range(count)]
        wait(ready)
        if any(isinstance(one.exception(), BrokenProcessPool) for one in ready):
            raise _ended()
        yield Workers(processes)
    finally:
        processes.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: this one ends them, without their tracebacks."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ended() -> UserError:
    return UserError("a worker process ended, perhaps for want of memory; try fewer workers")


_model: SentenceTransformer | None = None
"""That of a worker process."""


def _begin(model: SentenceTransformer, threads: int) -> None:
    global _model
    retain_freed_memory()
    torch.set_num_threads(threads)
    _model = model


def _ready() -> None:
    """Nothing to do: that it was done tells that a process has started."""


def _call(call: Callable[[Any, Any], Any], item: Any) -> Any:
    return call(_model, item)
