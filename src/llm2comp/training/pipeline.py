"""Run a recipe: stage after stage, skipping what is done, going on where a run was stopped."""

import shutil
import time
from pathlib import Path

import yaml
from rich.console import Console

from llm2comp import recipe
from llm2comp.errors import UserError
from llm2comp.recipe import FOLDERS
from llm2comp.training.pretext import train_pretext
from llm2comp.training.run_folder import LOG, MODEL, RECIPE
from llm2comp.training.run_log import RunLog
from llm2comp.training.supervised import train_supervised
from llm2comp.training.unsupervised import train_unsupervised
from llm2comp.utils.files import whole_file, whole_folder


def train(run: recipe.Recipe, out: Path, console: Console | None = None) -> Path:
    """Run a recipe's stages and return the folder of the final encoder, ``out/model``.

    ``out`` gets one encoder folder a stage, ``model``, ``recipe.yaml`` and
    ``run.jsonl``. A stage whose folder is there is skipped; a stage that was
    stopped goes on from its last checkpoint, to the same result bit for bit.

    Raises:
        UserError: if ``out`` holds another recipe's run, or a stage cannot run.
    """
    console = console or Console(stderr=True)
    out.mkdir(parents=True, exist_ok=True)
    _claim(run, out)
    log = RunLog(out / LOG, console)
    source: Path | None = None
    for stage in run.stages:
        folder = out / FOLDERS[stage.stage]
        if folder.exists():
            console.print(f"{folder.name}: done already, skipped")
        else:
            console.print(f"[bold]{folder.name}[/bold]: {stage.steps} steps of {stage.batch_size}")
            started = time.monotonic()
            _train_stage(run, stage, source, folder, out / f".{folder.name}.work", log)
            log.write(stage=stage.stage, done=True, seconds=round(time.monotonic() - started, 1))
        source = folder
    model = out / MODEL
    if not model.exists():
        with whole_folder(model) as partial:
            shutil.copytree(out / FOLDERS[run.stages[-1].stage], partial, dirs_exist_ok=True)
    return model


def _train_stage(
    run: recipe.Recipe,
    stage: recipe.Stage,
    source: Path | None,
    folder: Path,
    work: Path,
    log: RunLog,
) -> None:
    if isinstance(stage, recipe.Pretext):
        train_pretext(run, stage, folder, work, log)
    elif source is None:
        raise UserError(f"recipe {run.name}: {stage.stage} needs an encoder; put pretext before it")
    elif isinstance(stage, recipe.Unsupervised):
        train_unsupervised(run, stage, source, folder, work, log)
    else:
        train_supervised(run, stage, source, folder, work, log)
    shutil.rmtree(work)


def _claim(run: recipe.Recipe, out: Path) -> None:
    """Write ``recipe.yaml``, or check that the run that is there is of the same recipe."""
    path = out / RECIPE
    mine = run.model_dump(exclude={"evaluation"})
    if path.exists():
        theirs = recipe.load_recipe(path).model_dump(exclude={"evaluation"})
        if theirs != mine:
            raise UserError(
                f"{out} holds a run of another recipe (see {path}); "
                "give another --out, or remove that folder to begin anew"
            )
        return
    with whole_file(path) as partial:
        partial.write_text(
            yaml.safe_dump(run.model_dump(), sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
