"""Commands that measure encoders and report on them."""

from pathlib import Path
from typing import Annotated

import typer

from llm2comp import api
from llm2comp.cli.shared import BatchSize, Dtype, Merge, Seed, preload


def analyze(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Encoder folders, released names, hub ids, or .npy files of embeddings.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the JSON files and the figures.")],
    data: Annotated[
        str, typer.Option(help="Texts or pairs to encode: packaged source, file, hub id, or -.")
    ] = "boolq-pairs",
    texts: Annotated[int, typer.Option(min=2, help="Number of texts or pairs to draw.")] = 1000,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    dtype: Dtype = "auto",
    merge: Merge = None,
) -> None:
    """Measure how many directions the embeddings use, and how alike the memory tokens are.

    The folder gets one JSON file per encoder, and figures.

    \b
    Examples:
      llm2comp analyze smollm2-135m-llm2comp minilm --out runs/analysis
      llm2comp analyze runs/first/1-pretext --data my-texts.txt --out runs/analysis
      llm2comp analyze embeddings.npy --out runs/analysis
    """
    preload("llm2comp.analysis.analyze", "llm2comp.analysis.figures")
    from llm2comp.analysis import summary
    from llm2comp.utils import tables

    analyses = api.analyze(
        models,
        out,
        data=data,
        texts=texts,
        seed=seed,
        batch_size=batch_size,
        dtype=dtype,
        merge_threshold=merge,
    )
    tables.show_cells(summary.cells(analyses))
    for line in summary.notes(analyses):
        typer.echo(line)
    typer.echo(f"The numbers and figures are in {out}")


def report(
    models: Annotated[
        list[str],
        typer.Argument(metavar="RUN|MODEL", help="One run folder, or one or more encoders."),
    ],
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    data: Annotated[
        str,
        typer.Option(
            help="Texts for the map and the searches: packaged source, file, hub id, or -."
        ),
    ] = "boolq-passages",
    texts: Annotated[int, typer.Option(min=30, help="Number of texts to draw.")] = 300,
    query: Annotated[
        list[str] | None, typer.Option(help="Query to search for; may be repeated.")
    ] = None,
    capacity: Annotated[
        Path | None, typer.Option(help="Folder that `capacity` wrote, for its curves.")
    ] = None,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    dtype: Dtype = "auto",
) -> None:
    """Write one HTML file about a run, or about several encoders side by side.

    A report that exists is replaced. Any other file is not.

    \b
    Examples:
      llm2comp report runs/demo --out runs/demo/report.html
      llm2comp report smollm2-135m-llm2comp minilm --out report.html
      llm2comp report runs/first/model --data my.txt --query "whale songs" --out report.html
    """
    preload("llm2comp.analysis.report.write")
    api.report(
        models,
        out,
        data=data,
        texts=texts,
        queries=query or [],
        seed=seed,
        batch_size=batch_size,
        dtype=dtype,
        capacity=capacity,
    )
    typer.echo(f"{out}: open it in a browser")
