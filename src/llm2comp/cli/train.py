"""Commands that train: one run, a study of many, the demonstration."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from llm2comp import api
from llm2comp.cli.shared import preload
from llm2comp.utils.choices import OnBadRow


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe.")
    ] = None,
    *,
    out: Annotated[
        Path, typer.Option(help="Folder of the run. A stopped run goes on when it is given again.")
    ],
    on_bad_row: Annotated[
        OnBadRow | None,
        typer.Option(help="What to do with a bad row of data; default: as the recipe says."),
    ] = None,
) -> None:
    """Train an encoder from a recipe.

    The run's folder gets one encoder folder per stage (1-pretext, ...). The last one is
    copied to the folder "model".

    \b
    Examples:
      llm2comp train demo --out runs/demo
      llm2comp train smollm2-135m seed=1 pretext.steps=400 --out runs/seed1
      llm2comp train my.yaml --on-bad-row skip --out runs/mine
    """
    from llm2comp.recipe import load_recipe, recipe_path

    changes = list(overrides or [])
    if on_bad_row:
        changes.append(f"on_bad_row={on_bad_row}")
    loaded = load_recipe(recipe_path(recipe), changes)

    preload("llm2comp.training.pipeline", "llm2comp.training.scoring")
    model = api.train(loaded, out)
    if loaded.evaluation.tasks:
        from llm2comp.evaluation.results import show
        from llm2comp.training.run_folder import costs, read_scores

        show(read_scores(out), costs(loaded, out))
    typer.echo(f"SentenceTransformer({str(model)!r}) loads it.")


def study(
    study: Annotated[str, typer.Argument(help="A study file, or the name of a shipped study.")],
    *,
    out: Annotated[
        Path,
        typer.Option(help="Folder of the study. A stopped study goes on when it is given again."),
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="Run for minutes, to see that the study works.")
    ] = False,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a study whose trained stages may be copied; may be repeated."),
    ] = None,
) -> None:
    """Compare settings of a recipe over seeds, at an equal budget.

    Each setting and seed is a trial with a run folder of its own. A trial that fails does not
    stop the others.

    \b
    Examples:
      llm2comp study pretext --quick --out runs/study/pretext-quick
      llm2comp study my-study.yaml --out runs/study/mine
      llm2comp study contrastive --reuse runs/study/pretext --out runs/study/contrastive
    """
    from llm2comp.recipe import study_path
    from llm2comp.training.study.plan import load_study

    loaded = load_study(study_path(study), quick=quick)

    preload("llm2comp.training.study.run")
    from llm2comp.utils import tables

    found = api.study(study, out, quick=quick, reuse=reuse or [])
    if loaded.tuning:
        tables.show_cells(found.tuning_table())
        typer.echo()
    tables.show_cells(found.score_table())
    typer.echo(f"{out / 'results.json'} holds the scores of every trial.")
    if find_spec("matplotlib") and any(trial.scores for trial in found.trials.values()):
        from llm2comp.analysis import study_figure

        drawn, _ = study_figure.draw(found, loaded, out / "scores")
        typer.echo(f"{drawn} shows them.")
    for name, error in found.failed.items():
        typer.echo(f"llm2comp: {name} failed: {error}", err=True)
    raise typer.Exit(1 if found.failed else 0)


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
) -> None:
    """Train, score and search in 15 minutes.

    Every stage runs briefly, on real text. Two processor cores are enough.

    \b
    Example:
      llm2comp demo --out runs/demo
    """
    preload("llm2comp.cli.demo")
    from llm2comp.cli.demo import run

    run(out)
