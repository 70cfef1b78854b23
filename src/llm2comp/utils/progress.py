"""Progress bars over texts, which all show the count, the rate and the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

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

from llm2comp.utils.terminal import Terminal

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from torch import nn


class Pool(Protocol):
    """Worker processes that embed batches in place of the model."""

    on_batch: Callable[[int], object]
    """Called after each batch with the number of its texts."""


class _Rate(ProgressColumn):
    """Texts per second."""

    def render(self, task: Task) -> Text:
        # When the bar is full, show the rate of the whole: the last batches of several workers
        # arrive at once, so the latest rate would be too high.
        speed = task.completed / task.finished_time if task.finished_time else task.speed
        return Text(f"{speed:,.0f} texts/s" if speed else "")


def text_progress() -> Progress:
    """Return a progress bar over texts.

    It is shown on standard error, so that standard output holds results only.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=Terminal(stderr=True),
    )


@contextmanager
def track_texts(
    model: SentenceTransformer | CrossEncoder,
    progress: Progress,
    task: Any,
    pool: Pool | None = None,
    output: str = "sentence_embedding",
) -> Iterator[None]:
    """Advance a progress bar with every batch that the model reads within the block.

    Args:
        model: the model of this process. Its batches are counted by a forward hook.
        progress: the progress display.
        task: the id of the bar in `progress`.
        pool: worker processes that embed in place of the model, if there are any. They report
            their batches through `Pool.on_batch`.
        output: what the model returns for each text; `scores` for a cross-encoder.
    """
    if pool is not None:
        pool.on_batch = partial(progress.advance, task)

    def count(_: nn.Module, __: Any, features: dict[str, Any]) -> None:
        progress.advance(task, len(features[output]))

    hook = model.register_forward_hook(count)
    try:
        yield
    finally:
        hook.remove()
