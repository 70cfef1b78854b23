"""Commands that train: one run, a study of many, the demonstration."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from llm2comp.commands.shared import BadRow, importing


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

    with importing():
        from llm2comp import scores
        from llm2comp.evaluation import table
        from llm2comp.stages import chain
    model = chain.train(loaded, out)
    if loaded.evaluation.tasks:
        table.show(scores.score_run(loaded, out), scores.costs(loaded, out))
    typer.echo(f"SentenceTransformer({str(model)!r}) loads it.")


def study(
    study: Annotated[str, typer.Argument(help="A study file, or the name of a shipped study.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the study; a stopped one goes on in it.")],
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Some minutes' worth: does it run, not what comes of it."),
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

    with importing():
        from llm2comp.evaluation import table
        from llm2comp.study.run import StudyRun
    found = StudyRun(loaded, out).run()
    if loaded.tuning:
        table.show_cells(found.cells_of_tuning())
        typer.echo()
    table.show_cells(found.cells_of_table())
    typer.echo(f"{out / 'results.json'} holds the scores of every cell.")
    if find_spec("matplotlib") and any(cell.scores for cell in found.cells.values()):
        from llm2comp.study import figure

        drawn, _ = figure.draw(found, out / "scores")
        typer.echo(f"{drawn} shows them.")
    for name, error in found.failed.items():
        typer.echo(f"llm2comp: {name} failed: {error}", err=True)
    raise typer.Exit(1 if found.failed else 0)


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
) -> None:
    """Train, score and search in 15 minutes.

    Every stage runs briefly, on real text; two processor cores are enough.

    \b
    Example:
      llm2comp demo --out runs/demo
    """
    with importing():
        from llm2comp.demo import run
    run(out)
