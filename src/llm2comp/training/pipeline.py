"""Run a recipe: stage after stage, skipping what is done, resuming where a run was stopped."""

import shutil
import time
from pathlib import Path
from typing import cast

import yaml
from rich.console import Console

from llm2comp.errors import UserError
from llm2comp.recipe import STAGE_FOLDERS, Pretext, Recipe, Supervised, Unsupervised, load_recipe
from llm2comp.training.pretext import train_pretext
from llm2comp.training.run_folder import LOG, MODEL, RECIPE
from llm2comp.training.run_log import RunLog
from llm2comp.training.stage_context import StageContext
from llm2comp.training.supervised import train_supervised
from llm2comp.training.unsupervised import train_unsupervised
from llm2comp.utils.files import atomic_file, atomic_folder


def train(recipe: Recipe, out: Path, console: Console | None = None) -> Path:
    """Run a recipe's stages and return the folder of the final encoder, ``out/model``.

    ``out`` gets one encoder folder per stage, ``model``, ``recipe.yaml`` and ``run.jsonl``. A
    stage whose folder exists is skipped. A stage that was stopped resumes from its last
    checkpoint, with the same result bit for bit.

    Args:
        recipe: what to run.
        out: folder of the run.
        console: where progress is shown; standard error, when not given.

    Raises:
        UserError: if ``out`` holds another recipe's run, or a stage cannot run.
    """
    console = console or Console(stderr=True)
    out.mkdir(parents=True, exist_ok=True)
    _claim(recipe, out)
    log = RunLog(out / LOG, console)
    source: Path | None = None
    for stage in recipe.stages:
        folder = out / STAGE_FOLDERS[stage.stage]
        if folder.exists():
            console.print(f"{folder.name}: done already, skipped")
        else:
            console.print(f"[bold]{folder.name}[/bold]: {stage.steps} steps of {stage.batch_size}")
            started = time.monotonic()
            workdir = out / f".{folder.name}.work"
            _train_stage(StageContext(recipe, stage, source, folder, workdir, log))
            log.write(stage=stage.stage, done=True, seconds=round(time.monotonic() - started, 1))
        source = folder
    model = out / MODEL
    if not model.exists():
        with atomic_folder(model) as partial:
            shutil.copytree(
                out / STAGE_FOLDERS[recipe.stages[-1].stage], partial, dirs_exist_ok=True
            )
    return model


def _train_stage(context: StageContext[Pretext | Unsupervised | Supervised]) -> None:
    stage = context.stage
    if isinstance(stage, Pretext):
        train_pretext(cast(StageContext[Pretext], context))
    elif context.source is None:
        raise UserError(
            f"recipe {context.recipe.name}: {stage.stage} needs an encoder; put pretext before it"
        )
    elif isinstance(stage, Unsupervised):
        train_unsupervised(cast(StageContext[Unsupervised], context))
    else:
        train_supervised(cast(StageContext[Supervised], context))
    shutil.rmtree(context.workdir)


def _claim(recipe: Recipe, out: Path) -> None:
    """Write ``recipe.yaml``, or check that the run that is there is of the same recipe."""
    path = out / RECIPE
    if path.exists():
        settings = {"evaluation"}
        if load_recipe(path).model_dump(exclude=settings) != recipe.model_dump(exclude=settings):
            raise UserError(
                f"{out} holds a run of another recipe (see {path}); "
                "give another --out, or remove that folder to begin anew"
            )
        return
    with atomic_file(path) as partial:
        text = yaml.safe_dump(recipe.model_dump(), sort_keys=False, allow_unicode=True)
        partial.write_text(text, encoding="utf-8")
