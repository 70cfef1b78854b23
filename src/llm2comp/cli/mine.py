"""The command that mines hard negatives."""

from pathlib import Path
from typing import Annotated

import typer

from llm2comp import api_mining
from llm2comp.cli.shared import BatchSize, Dtype, ModelName, preload
from llm2comp.errors import counted


def mine(
    model: ModelName,
    pairs: Annotated[
        str,
        typer.Argument(
            metavar="PAIRS",
            help="Columns 'anchor' and 'positive': packaged source, file, or hub id.",
        ),
    ],
    corpus: Annotated[
        str | None,
        typer.Argument(
            metavar="CORPUS",
            help="Texts to search besides the positives: packaged source, file, hub id, or -.",
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="File to write: .jsonl. It must not exist.")],
    negatives: Annotated[int, typer.Option(min=1, help="Negatives to find for each pair.")] = 1,
    ranks: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="FIRST END",
            help="Look at ranks FIRST to END - 1 only, counted from 0 without the positives and "
            "before the margins; without it, at all texts.",
        ),
    ] = None,
    relative_margin: Annotated[
        float,
        typer.Option(
            min=0, help="Leave out texts that score above the positive less this share of it."
        ),
    ] = 0.05,
    absolute_margin: Annotated[
        float,
        typer.Option(min=0, help="Leave out texts that score above the positive less this."),
    ] = 0.0,
    reranker: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Cross-encoder that scores the texts of --ranks, or the first ten for each "
            "negative: folder or hub id.",
        ),
    ] = None,
    batch_size: BatchSize = 32,
    dtype: Dtype = "auto",
) -> None:
    """Find hard negatives for pairs, and write rows that stage 3 trains on.

    A hard negative is a text that the encoder ranks high for a query that it does not answer. The
    positives of a query are left out, and so are texts that score nearly as high, because they may
    be answers that nobody labelled. Negatives that the pairs have already are kept.

    \b
    Examples:
      llm2comp mine smollm2-135m-llm2comp pairs.jsonl --out mined.jsonl
      llm2comp mine runs/first/model pairs.jsonl corpus.txt --negatives 4 --out mined.jsonl
      llm2comp mine minilm pairs.jsonl --ranks 10 50 --relative-margin 0.1 --out mined.jsonl
      llm2comp mine minilm pairs.jsonl --reranker my-cross-encoder --out mined.jsonl
    """
    preload("llm2comp.inference.mining.mining_file")
    from llm2comp.utils import tables

    summary = api_mining.mine(
        model,
        pairs,
        out,
        corpus=corpus,
        negatives=negatives,
        ranks=ranks,
        relative_margin=relative_margin,
        absolute_margin=absolute_margin,
        reranker=reranker,
        batch_size=batch_size,
        dtype=dtype,
    )
    tables.show_cells(summary.table())
    for line in summary.examples():
        typer.echo(line)
    typer.echo("")
    for line in summary.notes():
        typer.echo(line)
    typer.echo(f"{out}: {counted(len(summary.rows), 'row')}")
