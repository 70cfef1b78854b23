"""What several commands share: options, and fast imports."""

import gc
import warnings
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from llm2comp.utils.choices import Precision

DEFAULT_BACKBONE = "smollm2-135m"
ModelName = Annotated[
    str, typer.Argument(help="Encoder folder, released name, or hub id.", metavar="MODEL")
]
TextFile = Annotated[
    Path,
    typer.Argument(
        help="Texts: one per line (.txt), or a column 'text' (.jsonl, .csv, .parquet).",
        metavar="FILE",
    ),
]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Texts of 64 tokens per batch; changes speed, not results.")
]
Dtype = Annotated[
    Precision,
    typer.Option(
        help="Precision; auto is bfloat16 where the processor has it and embeddings stay the same."
    ),
]
Merge = Annotated[
    float | None,
    typer.Option(help="Merge memory tokens whose average cosine is at least this (0 to 1)."),
]
Seed = Annotated[int, typer.Option(help="Seed of the random draw of texts.")]


def preload(*modules: str) -> None:
    """Import what a command needs without the garbage collector, and silence libraries.

    Importing creates half a million objects that stay. Looking for garbage among them while they
    come, and once more when the process ends, would take two seconds (docs/performance.md).
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
    """Silence what libraries print about their own workings; downloads keep their bars."""
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()  # casting and mapping a small table shows a bar each
    # PEFT (once per adapter), mteb (once per task) and torch's export still use old names of
    # transformers, sentence-transformers and torch.
    for renamed in (".*gradient_checkpointing", ".*get_sentence_embedding_dimension", ".*LeafSpec"):
        warnings.filterwarnings("ignore", message=renamed, category=FutureWarning)
