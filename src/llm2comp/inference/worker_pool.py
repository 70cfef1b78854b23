"""Processes that encode batches of one model, for machines with many cores or several sockets.

sentence-transformers has a pool of its own. Its processes use the stock model's `encode` whatever
the model's class: batches of a fixed number of texts, sorted by characters, and in each process as
many threads as the machine has cores.
"""

import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import resource_tracker
from threading import RLock, Thread
from typing import Any, TypeVar

import psutil
import torch
from sentence_transformers import SentenceTransformer
from torch import multiprocessing
from tqdm import tqdm

from llm2comp.errors import UserError
from llm2comp.utils.hardware import retain_freed_memory
from llm2comp.utils.processes import EndWithParent, run

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerEndedError(UserError):
    """A worker process ended, so that none of them can be used any more."""


class Workers:
    """Processes that hold a model, as `start` makes them.

    Args:
        processes: each has the model in `_model`.

    Attributes:
        on_batch: called with the number of texts of every batch that was embedded.
    """

    def __init__(self, processes: ProcessPoolExecutor) -> None:
        self.processes = processes
        self.on_batch: Callable[[int], object] = lambda _: None

    def map(self, call: Callable[[Any, Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield `call(model, item)` for each item, in order; the processes compute in parallel.

        Args:
            call: a function that can be pickled.
            items: are sent to the processes at once.

        Raises:
            WorkerEndedError: if a process ended.
        """
        try:
            yield from self.processes.map(partial(_call, call), items)
        except BrokenProcessPool as error:
            raise _worker_ended() from error


@contextmanager
def start(model: SentenceTransformer, count: int) -> Iterator[Workers]:
    """Start processes that share the model's memory and divide the threads of this process.

    The processes import the script that calls this function, so the script needs
    `if __name__ == "__main__":` around what it does.

    Args:
        model: on the processor; its weights move into shared memory.
        count: number of processes.

    Raises:
        UserError: if the model is on another device, it does not fit into shared memory, or a
            process does not start.
    """
    if model.device.type != "cpu":
        raise UserError(f"workers run on the processor, but this model is on {model.device}")
    try:
        model.share_memory()
    except RuntimeError as error:
        raise UserError(
            f"the model does not fit into shared memory ({error}); enlarge it, or do without "
            "workers"
        ) from error
    threads = max(1, torch.get_num_threads() // count)
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # before the workers, because it is not one of them
    others = set(psutil.Process().children())
    processes = ProcessPoolExecutor(count, context, run, (EndWithParent(), _begin, model, threads))
    ready: list[Future[None]] = []
    starter = Thread(target=_submit_all, args=(processes, ready, count), daemon=True)
    starter.start()
    try:
        starter.join()
        wait(ready)
        for future in ready:
            if failure := future.exception():
                raise _worker_ended() from failure
        yield Workers(processes)
    except BaseException:
        _kill_children(others)  # also the one that is being started, which the starter waits for
        starter.join()
        _kill_children(others)
        raise
    finally:
        processes.shutdown(cancel_futures=True)


def _submit_all(processes: ProcessPoolExecutor, ready: list[Future[None]], count: int) -> None:
    """Start all workers, in a thread where signals are blocked, as they then are in the workers.

    Only the process that starts the workers handles signals, and it ends them. A worker would show
    a traceback. The thread that handles signals does not wait for the starts, which take seconds.

    A start that fails puts its error into `ready`. If the other workers are killed meanwhile, it
    may be any error: their files are closed, and a new pipe may get the number of a closed one.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        for _ in range(count):
            ready.append(processes.submit(_do_nothing))
    except Exception as error:
        failed: Future[None] = Future()
        failed.set_exception(error)
        ready.append(failed)


def _kill_children(others: set[psutil.Process]) -> None:
    """Kill the processes that this one has started, except for others. They block signals."""
    for child in set(psutil.Process().children()) - others:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def _worker_ended() -> WorkerEndedError:
    return WorkerEndedError("a worker process ended, perhaps for lack of memory; try fewer workers")


_model: SentenceTransformer | None = None
"""The model of a worker process."""


def _begin(model: SentenceTransformer, threads: int) -> None:
    """Set up a worker process."""
    global _model
    # The default is a semaphore that is shared with other processes. It would outlive this process
    # if that is killed, and Python would warn of it.
    tqdm.set_lock(RLock())
    retain_freed_memory()
    torch.set_num_threads(threads)
    _model = model


def _do_nothing() -> None:
    """Return at once; the first result shows that a process has started."""


def _call(call: Callable[[Any, Any], Any], item: Any) -> Any:
    return call(_model, item)
