"""Commands that train: one run, a study of several runs, the demo."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from llm2comp import api
from llm2comp.cli.process import LOST, is_main
from llm2comp.cli.shared import preload
from llm2comp.errors import UserError
from llm2comp.utils.choices import OnBadRow


def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Recipe file, or name of a shipped recipe.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe.")
    ] = None,
    *,
    out: Annotated[
        Path,
        typer.Option(help="Folder of the run. Give it again to continue a run that was stopped."),
    ],
    on_bad_row: Annotated[
        OnBadRow | None,
        typer.Option(help="What to do with a bad row of data; default: what the recipe says."),
    ] = None,
) -> None:
    """Train an encoder from a recipe: from a language model, or from an encoder.

    The folder of the run gets one encoder folder per stage (1-pretext, ...). The last of them is
    copied to "model".

    \b
    Examples:
      llm2comp train demo --out runs/demo
      llm2comp train smollm2-135m seed=1 pretext.steps=400 --out runs/seed1
      llm2comp train finetune base=minilm supervised.data.0.source=my.csv --out runs/tuned
      llm2comp train my.yaml --on-bad-row skip --out runs/mine
      torchrun --nproc_per_node 8 -m llm2comp train my.yaml --out runs/mine
    """
    from llm2comp.recipe import load_recipe, recipe_path

    changes = list(overrides or [])
    if on_bad_row:
        changes.append(f"on_bad_row={on_bad_row}")
    with _one_voice():
        loaded = load_recipe(recipe_path(recipe), changes)
        preload("llm2comp.training.pipeline", "llm2comp.training.scoring")
        model = api.train(loaded, out)
    if not is_main():
        return
    if loaded.evaluation.tasks:
        from llm2comp.evaluation.results import show
        from llm2comp.training.run_folder import costs, read_scores

        show(read_scores(out), costs(loaded, out))
    trust = ", trust_remote_code=True" if loaded.backbone.trust_remote_code else ""
    typer.echo(f"Load it with SentenceTransformer({str(model)!r}{trust})")


@contextmanager
def _one_voice() -> Iterator[None]:
    """Let one of several processes say why all of them end, and the others end without a word."""
    if "RANK" not in os.environ:
        yield
        return
    from llm2comp.training.distributed import world

    try:
        yield
        world.leave()
    except Exception as error:
        status = 2 if isinstance(error, UserError) else 1
        if not world.is_first_to_fail():
            raise SystemExit(status) from None
        if world.has_lost_another(error):
            typer.echo(f"llm2comp: {LOST}", err=True)
            raise SystemExit(1) from None
        raise


def plan(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Recipe file, or name of a shipped recipe.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe.")
    ] = None,
    *,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="GPU that it will run on, such as H100-80GB or L4; default: this machine."
        ),
    ] = None,
) -> None:
    """Show what a run will need: tokens, operations, memory, disk and time.

    A step of each stage is measured here with few layers and random weights, or counted with
    --gpu, which takes a minute or two. If a stage does not fit into memory, the last lines name
    the settings to change.

    \b
    Examples:
      llm2comp plan demo
      llm2comp plan my-recipe.yaml supervised.batch_size=128 --gpu A100-40GB
    """
    from llm2comp.recipe import load_recipe, recipe_path

    loaded = load_recipe(recipe_path(recipe), list(overrides or []))
    preload("llm2comp.training.planning.plan")
    from llm2comp.training.planning import describe
    from llm2comp.utils import tables

    needed = api.plan(loaded, gpu=gpu)
    tables.show_cells(describe.table(needed))
    typer.echo()
    for line in describe.notes(needed):
        typer.echo(line)


def study(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="Study file, or name of a shipped study.")
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(help="Folder of the study. Give it again to continue a stopped study."),
    ],
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Run a small version that takes minutes, to check that the study works."
        ),
    ] = False,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a study whose trained stages are copied; may be repeated."),
    ] = None,
) -> None:
    """Compare settings of a recipe over seeds, at an equal budget.

    Each pair of a setting and a seed is a trial with its own run folder. If a trial fails, the
    others still run, and the exit status is 1.

    \b
    Examples:
      llm2comp study pretext --quick --out runs/study/pretext-quick
      llm2comp study my-study.yaml --out runs/study/mine
      llm2comp study memory_tokens --reuse runs/study/pretext --out runs/study/memory
    """
    from llm2comp.recipe import study_path
    from llm2comp.training.study.plan import load_study

    loaded = load_study(study_path(study), quick=quick)

    preload("llm2comp.training.study.run")
    from llm2comp.utils import tables

    results = api.study(study, out, quick=quick, reuse=reuse or [])
    if loaded.tuning:
        tables.show_cells(results.tuning_table())
        typer.echo()
    tables.show_cells(results.score_table())
    if results.comparison:
        typer.echo()
        tables.show_cells(results.comparison.table())
        typer.echo(results.comparison.notes())
    typer.echo(f"The scores of every trial are in {out / 'results.json'}")
    if find_spec("matplotlib") and any(trial.scores for trial in results.trials.values()):
        from llm2comp.analysis import study_figure

        drawn, _ = study_figure.draw(results, loaded, out / "scores")
        typer.echo(f"The figure is {drawn}")
    for name, error in results.failed.items():
        typer.echo(f"llm2comp: {name} failed: {error}", err=True)
    raise typer.Exit(1 if results.failed else 0)


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
) -> None:
    """Train a small encoder, score it and search with it, in 15 minutes.

    Each stage is a short training on real text. Two CPU cores are enough.

    \b
    Example:
      llm2comp demo --out runs/demo
    """
    preload("llm2comp.cli.demo.run")
    from llm2comp.cli.demo.run import run

    run(out)
