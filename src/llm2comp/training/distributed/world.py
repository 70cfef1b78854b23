"""The processes that train together: how many there are, and what they do and know together.

A launcher (`accelerate launch`, `torchrun`) starts them. Without one there is one process, and
nothing here does anything.
"""

import functools
import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from llm2comp.errors import UserError, one_line

T = TypeVar("T")

LONGEST_WORK = timedelta(days=7)
"""How long processes wait for the main one, which may draw rows or score for hours."""
SECONDS_TO_ASK = 3
"""How long a process that fails looks for the store that the processes share."""

logger = logging.getLogger("llm2comp")


def size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if size() > 1 else 0


def is_main() -> bool:
    """Return whether this process is the one that writes, logs and scores."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that a launcher has started, if it has, within the block.

    The others show no progress and no warnings, because these are those of the main process.

    Raises:
        UserError: if there is no launcher, and there are several GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=not torch.cuda.is_available())
    else:
        _require_one_gpu()
    level = logger.level
    if not is_main():
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # accelerate hands over an option of DDP by its old name.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        # DeepSpeed calls functions of torch by their old names.
        warnings.filterwarnings("ignore", "`torch.distributed.*` is deprecated", FutureWarning)
        try:
            yield
        finally:
            logger.setLevel(level)


def leave() -> None:
    """Leave the other processes, when all work is done."""
    if dist.is_initialized():
        dist.destroy_process_group()


def require_one_process(what: str) -> None:
    """Check that no launcher has started several processes.

    Args:
        what: what would be done by each of them, for the message.

    Raises:
        UserError: if one has.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{what} runs in one process; leave torchrun or accelerate launch out")


def _require_one_gpu() -> None:
    """Check that the Trainer would not divide each batch among the GPUs by itself.

    Raises:
        UserError: if it would: its `DataParallel` is slow, and our losses cannot be divided so.
    """
    count = torch.cuda.device_count()
    if count > 1 and "LOCAL_RANK" not in os.environ:
        raise UserError(
            f"{count} GPUs are visible and no launcher has started a process for each; run "
            f"accelerate launch --multi_gpu --num_processes {count} -m llm2comp train RECIPE --out "
            "DIR, or choose one GPU with CUDA_VISIBLE_DEVICES=0"
        )


def from_main(work: Callable[[], T]) -> T:
    """Let the main process do some work, and return its result in all processes.

    Args:
        work: what to do. Its result must be one that can be pickled.

    Raises:
        Exception: what the work raises, in all processes.
    """
    if size() == 1:
        return work()
    answer: list[Any] = [None, None]
    error: Exception | None = None
    if is_main():
        try:
            answer[0] = work()
        except Exception as raised:
            error = raised
            answer[1] = raised if isinstance(raised, UserError | ArithmeticError) else None
            answer[1] = answer[1] or RuntimeError(one_line(raised))
    dist.broadcast_object_list(answer, src=0, group=_waiting_group())
    if error is not None:
        raise error
    if answer[1] is not None:
        raise answer[1]
    return answer[0]  # type: ignore[no-any-return]


def main_first(work: Callable[[], T]) -> T:
    """Let the main process do some work, and then the others, which find the files that it wrote.

    Raises:
        Exception: what the work raises; in all processes if the main one raises it.
    """
    results: list[T] = []
    from_main(lambda: results.append(work()))
    return results[0] if results else work()


def wait() -> None:
    """Wait until all processes are here."""
    if size() > 1:
        dist.barrier(group=_waiting_group())


def total_count(here: int) -> int:
    """Return the sum of a number over the processes."""
    if size() == 1:
        return here
    number = torch.tensor(here)
    dist.all_reduce(number, group=_waiting_group())
    return int(number)


def total(number: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes. The tensor is on the device of the process."""
    if size() > 1:
        number = number.clone()
        dist.all_reduce(number)
    return number


def listed(here: Sequence[T]) -> list[T]:
    """Return a list of what each process has, in the order of the processes."""
    if size() == 1:
        return list(here)
    parts: list[Any] = [None] * size()
    dist.all_gather_object(parts, list(here), group=_waiting_group())
    return [one for part in parts for one in part]


def gather(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the rows of all processes. Only those of this process have a gradient.

    Args:
        rows: `(at least counts[rank()], …)`; what comes after the first `counts[rank()]` is left
            out.
        counts: rows of each process.

    Returns:
        `(sum(counts), …)`, in the order of the processes.
    """
    own = rows[: counts[rank()]]
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(own)] = own.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    there = [part[:count] for part, count in zip(parts, counts, strict=True)]
    there[rank()] = own
    return torch.cat(there)


def is_first_to_fail() -> bool:
    """Return whether no other process has failed before this one, so that this one says why.

    When one process ends, the others fail too, because they wait for it.
    """
    if size() == 1:  # the processes have not joined yet, and all fail for the same reason
        return os.environ.get("RANK", "0") == "0"
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        socket.create_connection((host, port), SECONDS_TO_ASK).close()
    except OSError:
        # The store has ended, as it does with the main process if no launcher holds it.
        return rank() <= 1
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        host, port, is_master=False, timeout=timedelta(seconds=SECONDS_TO_ASK)
    )
    first: bool = store.add("llm2comp/failures", 1) == 1
    return first


def has_lost_another(error: Exception) -> bool:
    """Return whether an error says that another process has ended."""
    lost = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return size() > 1 and isinstance(error, RuntimeError) and any(s in str(error) for s in lost)


@functools.cache
def _waiting_group() -> Any:
    """Return a group that waits long and needs no GPU."""
    return dist.new_group(backend="gloo", timeout=LONGEST_WORK)
