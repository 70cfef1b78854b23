"""The demonstration: a language model becomes a text encoder, step by step, on real text."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from sentence_transformers import SentenceTransformer

from llm2comp.analysis.report import gather, plots, write
from llm2comp.analysis.report.write import QUERIES
from llm2comp.data import catalog
from llm2comp.data.sample import Sample
from llm2comp.data.text_files import read_texts
from llm2comp.evaluation import results
from llm2comp.evaluation.tasks.squad import cut
from llm2comp.inference.load import load
from llm2comp.inference.search import search_all
from llm2comp.model import released
from llm2comp.recipe import Pretext, Recipe, load_recipe, recipe_path
from llm2comp.training import pipeline, run_folder, scoring
from llm2comp.utils.files import atomic_file

PASSAGES = 300
PASSAGES_FILE = "passages.jsonl"
REPORT_TEXTS = 200
REPORT_CHARACTERS = 160
ABOUT_RELEASED = "released, trained longer by recipes/smollm2-135m.yaml; recorded scores."


def run(out: Path) -> None:
    """Train the demo recipe in ``out``, then print the table, three searches, and a report's place.

    Raises:
        UserError: as :func:`llm2comp.stages.chain.train` does, and if plotly is not installed.
    """
    plots.script()  # missing, it is told now and not after the training
    console = Console(highlight=False)
    plan = load_recipe(recipe_path("demo"))
    console.print(f"[bold]{plan.backbone.name}[/bold] becomes a text encoder, in {out}")
    console.print(_about_the_start(plan))
    model_folder = pipeline.train(plan, out)
    rows = scoring.score_run(plan, out)
    for name in released.names():  # as recorded when it was released
        recorded = run_folder.read_scores(released.RELEASED / name)["after SCL"]
        rows[name] = [score for score in recorded if score.task in plan.evaluation.tasks]
    sizes = "quick sizes" if plan.evaluation.quick else "whole sets"
    console.print(f"\n[bold]Scores[/bold] ({sizes}, x 100; samples and time are of training)")
    results.show(rows, run_folder.costs(plan, out), console)
    note = f"{', '.join(released.names())}: {ABOUT_RELEASED}"
    console.print(f"{note}\n")
    _search(load(model_folder), out, console)
    _report(out, rows, note, console)
    console.print("[bold]Use it[/bold]")
    console.print(_python(model_folder), markup=False, soft_wrap=True)  # to be copied whole


def _about_the_start(plan: Recipe) -> str:
    first = plan.stages[0]
    if isinstance(first, Pretext) and first.start_from:
        return (
            "Stage 1 does not begin from nothing: it goes on from the released\n"
            f"{first.start_from}. To begin from nothing takes about an hour:\n"
            "llm2comp train smollm2-135m --out runs/full"
        )
    return "Every stage begins from nothing."


def _search(model: SentenceTransformer, out: Path, console: Console) -> None:
    file = out / PASSAGES_FILE
    passages = itertools.islice(catalog.rows("boolq-passages"), PASSAGES)
    with atomic_file(file) as partial:
        lines = (json.dumps(passage, ensure_ascii=False) + "\n" for passage in passages)
        partial.write_text("".join(lines), encoding="utf-8")
    console.print(f"[bold]Searches[/bold] over {PASSAGES} Wikipedia passages ({file})")
    for query, hits in zip(QUERIES, search_all(model, file, QUERIES, top_k=2), strict=True):
        console.print(query, markup=False)
        for hit in hits:
            text = " ".join(hit.text.split())
            console.print(
                f"  {hit.score:.3f}  {text}", markup=False, no_wrap=True, overflow="ellipsis"
            )
    console.print()


def _report(out: Path, rows: run_folder.Scores, note: str, console: Console) -> None:
    """Write ``report.html`` about the run, on the beginnings of the passages, which cost little.

    Its scores are those of the table: the released encoder's too, which are not the run's.
    """
    passages = itertools.islice(read_texts(out / PASSAGES_FILE), REPORT_TEXTS)
    beginnings = [cut(text, REPORT_CHARACTERS) for text in passages]
    shown = Sample(f"the beginnings of {PASSAGES_FILE}", beginnings, [], len(beginnings))
    content = replace(gather.gather([str(out)], shown, QUERIES), rows=rows, note=note)
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
