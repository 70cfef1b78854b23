"""One look for every progress bar over texts: done, rate, time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from sentence_transformers import SentenceTransformer
from torch import nn


class Pool(Protocol):
    """What embeds batches in the place of a model, and reports each of them."""

    on_batch: Callable[[int], object]


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        # At the end the whole's, for the last batches of several workers come at once.
        speed = task.completed / task.finished_time if task.finished_time else task.speed
        return Text(f"{speed:,.0f} texts/s" if speed else "")


def text_progress() -> Progress:
    """Return a bar over texts, on standard error so that output stays clean."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


@contextmanager
def track_texts(
    model: SentenceTransformer, progress: Progress, task: Any, pool: Pool | None = None
) -> Iterator[None]:
    """Advance a bar by the texts of every batch that the model embeds within the block.

    Args:
        model: here in this process.
        progress: has the bar.
        task: the bar.
        pool: those that embed in the model's place.
    """
    if pool is not None:
        pool.on_batch = partial(progress.advance, task)

    def count(_: nn.Module, __: Any, features: dict[str, Any]) -> None:
        progress.advance(task, len(features["sentence_embedding"]))

    hook = model.register_forward_hook(count)
    try:
        yield
    finally:
        hook.remove()
