"""Commands that judge encoders: scores, their tables, and a look inside."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm2comp.commands.shared import (
    DEFAULT_BACKBONE,
    Dtype,
    Format,
    Merge,
    Suite,
    importing,
    merging,
)
from llm2comp.errors import UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def evaluate(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="Folders, names or hub ids.")
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="Training-free encoder of --backbone; may be repeated.")
    ] = None,
    backbone: Annotated[str, typer.Option(help="What the baselines are of.")] = DEFAULT_BACKBONE,
    suite: Annotated[
        Suite, typer.Option(help="offline needs no hub; paper is the paper's 14 tasks.")
    ] = "offline",
    tasks: Annotated[
        str | None, typer.Option(help="Names with commas between, in the place of a suite.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fixed subsamples.")] = False,
    instructions: Annotated[
        bool, typer.Option("--instructions", help="Put the paper's instruction before queries.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of results; the cache's, when not given.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Score what was scored before.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts of 64 tokens at once.")] = 32,
    dtype: Dtype = "auto",
    merge: Merge = None,
) -> None:
    """Score models on a suite of mteb tasks.

    Scores are kept: a model is not scored twice on a task, and a stopped call goes on.

    \b
    Examples:
      llm2comp evaluate smollm2-135m-llm2comp minilm --quick
      llm2comp evaluate --baseline prompteol --backbone smollm2-135m --tasks STS17,TREC
      llm2comp evaluate runs/demo/model --merge 0.8 --tasks STSBenchmark
      llm2comp evaluate runs/first/model --suite paper --instructions
    """
    if not models and not baseline:
        raise UserError("name a model, or a --baseline, to evaluate")
    if merge is not None and not models:
        raise UserError("--merge is for encoders with memory tokens; name one")

    with importing():
        from llm2comp import baselines, precision, release, scores
        from llm2comp.evaluation import runner, suites, table
        from llm2comp.evaluation.store import Store
    asked = {name: about.instruction for name, about in suites.paper_tasks().items()}
    rows = {}

    def score(name: str, encoder: "SentenceTransformer", lineage: Any = None) -> None:
        rows[name] = runner.evaluate(
            encoder,
            name,
            suites.choose(suite, tasks, quick=quick),
            Store(out),
            batch_size,
            again=again,
            instructions=asked if instructions else None,
            lineage=lineage,
        )

    suites.choose(suite, tasks, quick=quick)  # a wrong name is told before models are loaded
    for name in baseline or []:
        row = name if backbone == DEFAULT_BACKBONE else f"{name} of {Path(backbone).name}"
        folder = scores.backbone_folder(backbone)
        build = partial(baselines.build, name, folder)
        score(row, precision.settle(row, dtype, build, str(folder)))
    for name in models or []:
        encoder = precision.load_model(name, dtype, merge)
        row = name if merge is None else f"{name}, merged at {merge:g}"
        row += ", instructed" if instructions else ""
        score(row, encoder, release.lineage_of(name))
    table.show(rows)


def results(
    folder: Annotated[
        Path | None, typer.Argument(help="As --out of evaluate; the cache's, when not given.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Those of quick versions.")] = False,
    sort: Annotated[str, typer.Option(help="Column that orders the rows.")] = "mean",
    against: Annotated[str | None, typer.Option(help="Show how far others are from it.")] = None,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="With --against: 95 % intervals, by bootstrap.")
    ] = False,
    by_type: Annotated[bool, typer.Option("--by-type", help="Means over types of tasks.")] = False,
    with_paper: Annotated[
        bool, typer.Option("--with-paper", help="The paper's rows too (Llama-2).")
    ] = False,
    to: Annotated[Format, typer.Option(help="How to write the table.")] = "terminal",
) -> None:
    """Show what was scored.

    \b
    Examples:
      llm2comp results --quick
      llm2comp results --against minilm --intervals
      llm2comp results --with-paper --to markdown > results.md
      llm2comp results runs/scores --by-type --sort retrieval --to latex
    """
    if intervals and (against is None or by_type):
        raise UserError("--intervals needs --against, and tasks, not --by-type")

    from llm2comp.evaluation import table
    from llm2comp.evaluation.results import Board
    from llm2comp.evaluation.store import Store

    found = [one for one in Store(folder).all() if one.score.quick == quick]
    board = Board.of(found, with_paper=with_paper)
    if intervals and against is not None:
        cells = board.interval_cells(against)
    else:
        cells = (board.by_type() if by_type else board).cells(sort=sort, against=against)
    writers = {"markdown": table.markdown, "csv": table.csv_text, "latex": table.latex}
    if to == "terminal":
        table.show_cells(cells)
    else:
        typer.echo(writers[to](cells), nl=False)


def analyze(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL", help="Folders, names, hub ids, or .npy files.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the JSON and the figures.")],
    data: Annotated[str, typer.Option(help="Packaged source, file or hub id.")] = "boolq-pairs",
    texts: Annotated[int, typer.Option(min=2, help="Texts, or pairs, to draw from it.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts of 64 tokens at once.")] = 32,
    merge: Merge = None,
) -> None:
    """See how encoders use their space, and what their memory tokens say.

    \b
    Examples:
      llm2comp analyze smollm2-135m-llm2comp minilm --out runs/analysis
      llm2comp analyze runs/first/1-pretext --data my-texts.txt --out runs/analysis
      llm2comp analyze vectors.npy --out runs/analysis
    """
    with importing():
        from llm2comp import release
        from llm2comp.analysis import analyze, figures, sample, summary
        from llm2comp.evaluation import table
    found = []
    drawn = None
    for model, name in zip(models, summary.short_names(models), strict=True):
        if model.endswith(".npy"):
            found.append(analyze.analyze_vectors(Path(model), name))
            continue
        drawn = drawn or sample.draw(data, texts, seed)
        encoder = merging(release.load_model(model), merge)
        found.append(analyze.analyze_model(encoder, name, drawn, batch_size))
    for model, one, stem in zip(models, found, summary.stems(found), strict=True):
        replace(one, model=model).write(out / f"{stem}.json")
    figures.spectrum(found, out / "spectrum")
    if with_memory := [one for one in found if one.memory is not None]:
        figures.memory(with_memory, out / "memory")
    table.show_cells(summary.cells(found))
    for line in summary.notes(found):
        typer.echo(line)
    typer.echo(f"{out} holds the numbers and the figures.")


def report(
    models: Annotated[
        list[str], typer.Argument(metavar="RUN|MODEL", help="A run's folder, or encoders.")
    ],
    out: Annotated[Path, typer.Option(help="The HTML file.")],
    data: Annotated[str, typer.Option(help="Texts to map and to search.")] = "boolq-passages",
    texts: Annotated[int, typer.Option(min=30, help="How many to draw.")] = 300,
    query: Annotated[list[str] | None, typer.Option(help="To search for; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts of 64 tokens at once.")] = 32,
) -> None:
    """Write one HTML file about a run, or about encoders side by side.

    \b
    Examples:
      llm2comp report runs/demo --out runs/demo/report.html
      llm2comp report smollm2-135m-llm2comp minilm --out report.html
      llm2comp report runs/first/model --data my.txt --query "whale songs" --out report.html
    """
    with importing():
        from llm2comp.analysis import sample
        from llm2comp.demo import QUERIES
        from llm2comp.report import gather, write
    drawn = sample.draw(data, texts, seed)
    content = gather.gather(models, drawn, query or QUERIES, batch_size)
    write.write(content, out)
    typer.echo(f"{out}: open it in a browser")
