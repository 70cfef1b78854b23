"""Options that several commands have, and fast imports."""

import gc
import warnings
from importlib import import_module
from typing import Annotated

import typer

from llm2comp.utils.choices import EmbeddingPrecision, Precision

DEFAULT_BACKBONE = "smollm2-135m"
ModelName = Annotated[
    str, typer.Argument(help="Encoder folder, released name, or hub id.", metavar="MODEL")
]
BatchSize = Annotated[
    int,
    typer.Option(
        min=1, help="Number of texts of 64 tokens per batch; it changes speed, not results."
    ),
]
Dtype = Annotated[
    Precision,
    typer.Option(
        help="Precision; auto takes bfloat16 if it is fast here and keeps the embeddings the same."
    ),
]
Merge = Annotated[
    float | None,
    typer.Option(
        help="Merge memory tokens whose average cosine is at least this (above 0, up to 1)."
    ),
]
MemoryTokens = Annotated[
    int | None,
    typer.Option(
        min=1, help="Append only so many memory tokens, the first ones; default: all of them."
    ),
]
Dim = Annotated[
    int | None,
    typer.Option(min=1, help="Keep this many leading dimensions, scaled to unit length."),
]
StoredPrecision = Annotated[
    EmbeddingPrecision,
    typer.Option(help="Store embeddings in this; binary is one bit for each dimension."),
]
SearchPrecision = Annotated[
    EmbeddingPrecision | None,
    typer.Option(
        help="Store embeddings in this, and compare them with the query's floats; default: as in a "
        "file of embeddings, or else float32."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of the random draw of texts.")]


def preload(*modules: str) -> None:
    """Import what a command needs with the garbage collector off, and silence libraries.

    The imports create half a million objects that live until the process ends. The garbage
    collector would examine them during the imports and again at the end, which takes two seconds
    (docs/performance.md). So it is off during the imports, and `gc.freeze` exempts the objects.
    """
    gc.disable()
    try:
        for module in modules:
            import_module(module)
        quiet()
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
        gc.enable()


def quiet() -> None:
    """Silence progress bars and warnings of libraries, except the progress bars of downloads."""
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()  # each cast or map of a small table would show one
    # PEFT (once per adapter), mteb (once per task) and torch.export use deprecated names, and the
    # user can do nothing about these warnings.
    for renamed in (".*gradient_checkpointing", ".*get_sentence_embedding_dimension", ".*LeafSpec"):
        warnings.filterwarnings("ignore", message=renamed, category=FutureWarning)
