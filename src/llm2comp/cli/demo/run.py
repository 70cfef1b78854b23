"""The demonstration: a language model becomes a text encoder, step by step, on real text."""

import itertools
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from sentence_transformers import SentenceTransformer

from llm2comp.analysis.report import gather, plots, write
from llm2comp.analysis.report.write import QUERIES
from llm2comp.cli.demo.sizes import BUDGET, Sizes
from llm2comp.data import catalog
from llm2comp.data.sample import Sample
from llm2comp.data.text_files import read_texts
from llm2comp.evaluation import results
from llm2comp.evaluation.tasks.offline import cut
from llm2comp.inference.load import load
from llm2comp.inference.search import search_all
from llm2comp.model import released
from llm2comp.recipe import Pretext, Recipe, load_recipe, recipe_path
from llm2comp.training import pipeline
from llm2comp.training.pretext import step_seconds
from llm2comp.training.run_folder import Run, Scores, costs, read_scores
from llm2comp.training.scoring import score_run
from llm2comp.utils.choices import Precision
from llm2comp.utils.files import atomic_file, require_folder
from llm2comp.utils.terminal import Terminal

PASSAGES = 300
PASSAGE_CHARACTERS = 320
PASSAGES_FILE = "passages.jsonl"
REPORT_TEXTS = 120
REPORT_CHARACTERS = 160
ABOUT_RELEASED = "released, trained longer by recipes/smollm2-135m.yaml; recorded scores."


def run(out: Path) -> None:
    """Train the demo recipe in `out`, then print scores and three searches, and write a report.

    The sizes of the stages are chosen so that all of it takes at most 12 minutes, if the machine
    is not slower than two cores with AVX2.

    Args:
        out: folder of the run. A stopped demonstration goes on in it.

    Raises:
        UserError: as `llm2comp.training.pipeline.train` does, and if plotly is not installed.
    """
    require_folder(out)
    deadline = time.monotonic() + BUDGET
    plots.script()  # without plotly the error comes now, not after the training
    console = Terminal(highlight=False)
    recipe = load_recipe(recipe_path("demo"))
    console.print(f"[bold]{recipe.backbone.name}[/bold] becomes a text encoder, in {out}")
    console.print("Every stage begins from nothing: from the language model and a new adapter.")
    _fetch(recipe)
    first = recipe.stages[0]
    assert isinstance(first, Pretext)
    sizes = Sizes(recipe, partial(step_seconds, recipe, first), deadline, console)
    model_folder = pipeline.train(recipe, out, plan=sizes.plan)
    recipe = Run.read(out).recipe  # with the sizes that were chosen
    rows = score_run(recipe, out)
    for name in released.names():  # as recorded when it was released
        recorded = read_scores(released.RELEASED / name)["after SCL"]
        rows[name] = [score for score in recorded if score.task in recipe.evaluation.tasks]
    console.print("\n[bold]Scores[/bold] (whole sets, x 100; samples and time are of training)")
    results.show(rows, costs(recipe, out), console)
    note = f"{', '.join(released.names())}: {ABOUT_RELEASED}"
    console.print(f"{note}\n")
    _search(load(model_folder, recipe.backbone.dtype), out, console)
    _report(out, rows, note, recipe.backbone.dtype, console)
    console.print("[bold]Use it[/bold]")
    console.print(_python(model_folder), markup=False, soft_wrap=True)  # to be copied whole
    took = time.monotonic() - deadline + BUDGET
    console.print(f"\nThis took {took / 60:.1f} minutes.")


def _fetch(recipe: Recipe) -> None:
    """Download what the demonstration reads, so that downloads are not taken for slow training."""
    sources = {source.source for stage in recipe.stages for source in stage.data}
    for name in [recipe.backbone.name, *sorted(sources), "stsb"]:
        catalog.fetch(name)


def _search(model: SentenceTransformer, out: Path, console: Console) -> None:
    file = out / PASSAGES_FILE
    passages = itertools.islice(catalog.rows("boolq-passages"), PASSAGES)
    beginnings = ({"text": cut(passage["text"], PASSAGE_CHARACTERS)} for passage in passages)
    with atomic_file(file) as unfinished:
        lines = (json.dumps(passage, ensure_ascii=False) + "\n" for passage in beginnings)
        unfinished.write_text("".join(lines), encoding="utf-8")
    console.print(
        f"[bold]Searches[/bold] over the beginnings of {PASSAGES} Wikipedia passages ({file})"
    )
    for query, hits in zip(QUERIES, search_all(model, file, QUERIES, top_k=2), strict=True):
        console.print(query, markup=False)
        for hit in hits:
            text = " ".join(hit.text.split())
            console.print(
                f"  {hit.score:.3f}  {text}", markup=False, no_wrap=True, overflow="ellipsis"
            )
    console.print()


def _report(out: Path, rows: Scores, note: str, dtype: Precision, console: Console) -> None:
    """Write `report.html` about the run, with the beginnings of the passages, which cost little.

    Its scores are those of the table, with the released encoder's, which is not of the run.
    """
    passages = itertools.islice(read_texts(out / PASSAGES_FILE), REPORT_TEXTS)
    beginnings = [cut(text, REPORT_CHARACTERS) for text in passages]
    shown = Sample(f"the beginnings of {PASSAGES_FILE}", beginnings, [], len(beginnings))
    content = replace(gather.gather([str(out)], shown, QUERIES, dtype=dtype), rows=rows, note=note)
    write.write(content, out / "report.html")
    console.print(f"[bold]Report[/bold] {out / 'report.html'}: open it in a browser\n")


def _python(folder: Path) -> str:
    return (
        "from sentence_transformers import SentenceTransformer\n\n"
        f"model = SentenceTransformer({str(folder)!r})\n"
        'query = model.encode_query("how do whales breathe")\n'
        'passages = model.encode_document(["Whales are mammals.", "Roman coins were found."])\n'
        "print(model.similarity(query, passages))"
    )
