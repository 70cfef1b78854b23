"""What several commands share: kinds of options, and how they import."""

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BadRow = Literal["fail", "skip"]
Prompt = Literal["query", "document"]
DEFAULT_BACKBONE = "smollm2-135m"
Format = Literal["terminal", "markdown", "csv", "latex"]
Suite = Literal["offline", "paper"]
Precision = Literal["float32", "bfloat16", "auto"]
Dtype = Annotated[
    Precision,
    typer.Option(help="auto is bfloat16 if the processor has it and vectors stay the same."),
]
Merge = Annotated[
    float | None, typer.Option(help="Merge memory tokens whose cosine is at least this.")
]


def merging(model: "SentenceTransformer", threshold: float | None) -> "SentenceTransformer":
    """Make a model merge its memory tokens, if ``--merge`` was given."""
    if threshold is None:
        return model
    from llm2comp.merging import merge_memory

    return merge_memory(model, threshold)


@contextmanager
def importing() -> Iterator[None]:
    """Import what a command needs without the garbage collector, and silence it.

    Half a million objects come and stay. To look for garbage among them, again and again while
    they come and once more when the process ends, takes two seconds (docs/performance.md).
    """
    gc.disable()
    try:
        yield
        quiet()
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
        gc.enable()


def quiet() -> None:
    """Silence what libraries print of their own workings; downloads keep their bars."""
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()  # small tables are cast and mapped with a bar each
    # PEFT asks the old name of a transformers property, once for every adapter, mteb that of a
    # sentence-transformers method, once for every task, and torch's export of a class of its own.
    for renamed in (".*gradient_checkpointing", ".*get_sentence_embedding_dimension", ".*LeafSpec"):
        warnings.filterwarnings("ignore", message=renamed, category=FutureWarning)
