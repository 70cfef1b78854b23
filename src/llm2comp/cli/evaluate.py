"""Commands that score encoders and show stored scores."""

from pathlib import Path
from typing import Annotated

import typer

from llm2comp import api
from llm2comp.cli.shared import (
    DEFAULT_BACKBONE,
    BatchSize,
    Dim,
    Dtype,
    MemoryTokens,
    Merge,
    StoredPrecision,
    preload,
)
from llm2comp.errors import UserError
from llm2comp.utils.choices import Suite, TableFormat, VectorCount


def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Encoder folders, released names, or hub ids."),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="Training-free encoder made of --backbone; may be repeated."),
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="Causal language model of the baselines.")
    ] = DEFAULT_BACKBONE,
    suite: Annotated[
        Suite,
        typer.Option(help="offline needs no hub; paper has the paper's 14 tasks, from the hub."),
    ] = "offline",
    tasks: Annotated[
        str | None, typer.Option(help="Task names separated by commas, instead of a suite.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Your own pairs (.jsonl, .csv, .parquet), or a folder with queries.jsonl, "
            "corpus.jsonl and qrels/, instead of a suite; may be repeated."
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Use fixed subsamples. Compare such scores only with each other."
        ),
    ] = False,
    instructions: Annotated[
        bool,
        typer.Option(
            "--instructions", help="Put the paper's instruction for the task before queries."
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of stored results; default: in the cache.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Compute scores again even if they are stored.")
    ] = False,
    batch_size: BatchSize = 32,
    dtype: Dtype = "auto",
    merge: Merge = None,
    memory_tokens: MemoryTokens = None,
    dim: Dim = None,
    precision: StoredPrecision = "float32",
    sizes: Annotated[
        bool,
        typer.Option(
            "--sizes",
            help="Score small vectors too: fewer dimensions in all precisions, one row for each.",
        ),
    ] = False,
    vectors: Annotated[
        VectorCount,
        typer.Option(help="k scores the k memory vectors of each text with MaxSim."),
    ] = "one",
) -> None:
    """Score models on mteb tasks.

    Scores are stored, and a stored score is not computed again. So a command that was stopped
    continues when it is repeated.

    \b
    Examples:
      llm2comp evaluate smollm2-135m-llm2comp minilm --quick
      llm2comp evaluate --baseline prompteol --backbone smollm2-135m --tasks STS17,TREC
      llm2comp evaluate runs/demo/model --merge 0.8 --tasks STSBenchmark
      llm2comp evaluate runs/first/model --suite paper --instructions
      llm2comp evaluate runs/first/model minilm --data my-dev.jsonl
      llm2comp evaluate runs/first/model --sizes --quick --tasks STSBenchmark,SQuADRetrieval
      llm2comp evaluate runs/first/model --dim 128 --precision binary --tasks SQuADRetrieval
      llm2comp evaluate runs/first/model --vectors k --tasks SQuADRetrieval,STSBenchmark
      llm2comp evaluate runs/first/model --memory-tokens 2 --tasks SQuADRetrieval,STSBenchmark
    """
    if not models and not baseline:
        raise UserError("name a model, or a --baseline, to evaluate")
    preload("llm2comp.evaluation.evaluate", "llm2comp.evaluation.results")
    from llm2comp.evaluation.results import show, size_columns

    rows = api.evaluate(
        models or [],
        baselines=baseline or [],
        backbone=backbone,
        suite=suite,
        tasks=None if tasks is None else [name.strip() for name in tasks.split(",")],
        quick=quick,
        instructions=instructions,
        data=data or [],
        out=out,
        again=again,
        batch_size=batch_size,
        dtype=dtype,
        merge_threshold=merge,
        memory_tokens=memory_tokens,
        dim=dim,
        precision=precision,
        sizes=sizes,
        vectors=vectors,
    )
    show(rows, size_columns(rows) if sizes else None)


def results(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="FOLDER", help="Folder that evaluate wrote; default: in the cache."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Show the scores of quick versions.")
    ] = False,
    sort: Annotated[str, typer.Option(help="Column to sort by.")] = "mean",
    against: Annotated[str | None, typer.Option(help="Model to compare the others with.")] = None,
    intervals: Annotated[
        bool,
        typer.Option(
            "--intervals", help="With --against: 95 % bootstrap intervals of the differences."
        ),
    ] = False,
    by_type: Annotated[
        bool, typer.Option("--by-type", help="Show the mean per type of task.")
    ] = False,
    with_paper: Annotated[
        bool, typer.Option("--with-paper", help="Add the paper's scores (Llama-2).")
    ] = False,
    to: Annotated[TableFormat, typer.Option(help="Format of the table.")] = "terminal",
) -> None:
    """Show the stored scores as a table.

    \b
    Examples:
      llm2comp results --quick
      llm2comp results --against minilm --intervals
      llm2comp results --with-paper --to markdown > results.md
      llm2comp results runs/scores --by-type --sort retrieval --to latex
    """
    if intervals and (against is None or by_type):
        raise UserError("--intervals needs --against and cannot be used with --by-type")

    from llm2comp.evaluation.results import Leaderboard
    from llm2comp.evaluation.store import ResultStore
    from llm2comp.utils import tables

    stored = [result for result in ResultStore(folder).all() if result.score.quick == quick]
    board = Leaderboard.of(stored, with_paper=with_paper)
    if intervals and against is not None:
        cells = board.interval_cells(against)
    else:
        cells = (board.by_type() if by_type else board).cells(sort=sort, against=against)
    writers = {"markdown": tables.markdown, "csv": tables.csv_text, "latex": tables.latex}
    if to == "terminal":
        tables.show_cells(cells)
    else:
        typer.echo(writers[to](cells), nl=False)
