"""Run a recipe: train one stage after another, skip finished stages, resume a stopped one."""

import logging
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from llm2comp.data.drawn.preflight import require_sources
from llm2comp.errors import UserError, counted
from llm2comp.model.backbone import require_trainable
from llm2comp.model.base import BaseEncoder, open_base, pinned_recipe
from llm2comp.recipe import (
    STAGE_FOLDERS,
    Pretext,
    Recipe,
    Stage,
    Supervised,
    Unsupervised,
)
from llm2comp.training.checkpoints import last_checkpoint, start_log
from llm2comp.training.distributed import world
from llm2comp.training.distributed.launch import require_possible
from llm2comp.training.dry_run import DRY_RUN, rehearse
from llm2comp.training.monitoring.development import check_during
from llm2comp.training.monitoring.divergence import has_diverged, with_remedies
from llm2comp.training.monitoring.run_log import RunLog
from llm2comp.training.monitoring.trackers import require_trackers
from llm2comp.training.planning.fitting import lineage_before, require_fitting
from llm2comp.training.pretext import train_pretext
from llm2comp.training.run_folder import (
    LOG,
    MODEL,
    RECIPE,
    SCORES,
    alone_in,
    as_begun,
    at_commit,
    is_of_0_1,
    read_recipe,
    require_none_later,
    write_recipe,
)
from llm2comp.training.scoring import forget_scores
from llm2comp.training.stage_context import StageContext
from llm2comp.training.supervised import require_models, train_supervised
from llm2comp.training.unsupervised import train_unsupervised
from llm2comp.utils.checksums import require_unchanged
from llm2comp.utils.files import atomic_file, atomic_folder, link_weights

logger = logging.getLogger("llm2comp")

BASE = "base.sha256"
"""File of a work folder with the fingerprint of the base that the stage starts from."""
SIZES = frozenset(
    {
        "steps",
        "batch_size",
        "mini_batch_size",
        "mini_batch_tokens",
        "warmup_steps",
        "save_steps",
        "log_steps",
        "eval_steps",
        "eval_passages",
        "eval_pairs",
    }
)
"""Keys of a stage that a plan may change."""
TARGETS_OF_0_1 = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""What 0.1 wrote to a run's `recipe.yaml` where a recipe named no `target_modules`."""


def train(
    recipe: Recipe,
    out: Path,
    console: Console | None = None,
    plan: Callable[[Stage], Stage] | None = None,
) -> Path:
    """Run a recipe's stages and return the folder of the final encoder, `out/model`.

    A run that is refused before it has trained leaves no new folder. The folder gets one encoder
    folder per stage, `model`, `recipe.yaml` and `run.jsonl`. A stage
    whose folder exists is skipped. A stage that was stopped resumes from its last checkpoint, and
    the result is the same, bit for bit.

    A `plan` decides the size of a stage just before it starts, for example from the time that is
    left. It is asked about each stage that has neither an encoder folder nor a checkpoint, and its
    answer is written to `recipe.yaml` before the stage starts. A stage that has started keeps the
    sizes in that file, so that a stopped run resumes with them.

    Args:
        recipe: what to run.
        out: folder of the run.
        console: where progress is shown; standard error by default.
        plan: takes a stage of the recipe and returns it, perhaps with other `SIZES`.

    Raises:
        UserError: if `out` holds a run of another recipe, or a stage cannot run.
        ValueError: if the plan changes more than sizes.
    """
    with world.joined(), ExitStack() as stack:
        require_possible(recipe, planned=plan is not None)
        require_trainable(recipe.backbone)
        world.from_main(lambda: _require_startable(recipe, out))
        world.from_main(lambda: stack.enter_context(alone_in(out)))
        log = RunLog(out / LOG, console or Console(stderr=True, quiet=not world.is_main()))
        recipe = world.from_main(lambda: _begin(recipe, out, log, planned=plan is not None))
        source: Path | None = None
        for name in [stage.stage for stage in recipe.stages]:
            recipe = _run_stage(recipe, name, source, out, log, plan)
            source = out / STAGE_FOLDERS[name]
        return world.from_main(lambda: _copy_last(recipe, out))


def _require_startable(recipe: Recipe, out: Path) -> None:
    """Check what the recipe and the lineage of its encoder tell, before there is a folder.

    Raises:
        UserError: as `train`.
    """
    require_trackers(recipe.report_to)
    if not (out / RECIPE).exists():  # a run that continues has chosen its encoder
        require_fitting(recipe, lineage_before(recipe))


def _begin(recipe: Recipe, out: Path, log: RunLog, *, planned: bool) -> Recipe:
    """Check all that can be checked before the first stage, and return what to run.

    Raises:
        UserError: as `train`.
    """
    _remove_partials(out)
    recipe = _claim(recipe, out, planned=planned)
    if recipe.lacks_query_prompt:
        logger.warning(
            "queries are trained with several instructions, and prompts.query is empty: "
            "encode_query and search will put nothing before a query; set prompts.query to one "
            "of the instructions and a colon (each is stored as a prompt of its source's name)"
        )
    waiting = [s for s in recipe.stages if not (out / STAGE_FOLDERS[s.stage]).exists()]
    require_none_later(recipe, out)
    check_during(recipe, waiting)
    for stage in waiting:
        require_models(stage)
        require_sources(stage, _workdir(stage.stage, out), recipe.on_bad_row)
    log.check()
    return recipe


def _run_stage(
    recipe: Recipe,
    name: str,
    source: Path | None,
    out: Path,
    log: RunLog,
    plan: Callable[[Stage], Stage] | None,
) -> Recipe:
    """Train a stage unless it is done.

    Args:
        recipe: what to run.
        name: of the stage.
        source: encoder folder of the stage before; `None` for the first stage.
        out: folder of the run.
        log: of the run.
        plan: as `train` takes it.

    Returns:
        The recipe with the sizes that the plan gave the stage.
    """
    workdir, begun = _workdir(name, out), None
    if world.from_main(lambda: _is_done(name, out, log)):
        return recipe
    recipe = world.from_main(lambda: _settled(recipe, name, out, plan, is_first=source is None))
    if source is None and recipe.base is not None:
        base = world.main_first(lambda: open_base(recipe))
        world.from_main(lambda: _require_same_base(base, workdir))
        source, begun = base.folder, base.lineage
    stage, folder = _stage(recipe, name), out / STAGE_FOLDERS[name]
    log.console.print(
        f"[bold]{folder.name}[/bold]: {counted(stage.steps, 'step')} of {stage.batch_size}"
    )
    world.from_main(lambda: start_log(log, name, workdir))
    world.from_main(lambda: forget_scores(name, out))
    _train_stage(StageContext(recipe, stage, source, folder, workdir, log, begun))
    return recipe


def _is_done(name: str, out: Path, log: RunLog) -> bool:
    """Return whether a stage is done; if so, tidy up what a killed process left.

    Raises:
        UserError: if its folder is not as it was written.
    """
    folder = out / STAGE_FOLDERS[name]
    if not folder.exists():
        return False
    _require_whole(folder)
    log.ensure_finished(name)
    shutil.rmtree(_workdir(name, out), ignore_errors=True)
    log.console.print(f"{folder.name}: done already, skipped")
    return True


def _settled(
    recipe: Recipe,
    name: str,
    out: Path,
    plan: Callable[[Stage], Stage] | None,
    *,
    is_first: bool,
) -> Recipe:
    """Return the recipe as a stage trains with it, and write it to the folder of the run."""
    if plan is not None and not _has_started(name, out):
        recipe = _apply(plan, recipe, name)
        write_recipe(recipe, out)
    if is_first and not is_of_0_1(out):
        recipe = pinned_recipe(recipe)
        write_recipe(recipe, out)
    return recipe


def _remove_partials(out: Path) -> None:
    """Remove files and folders that a killed process was writing."""
    for name in (DRY_RUN, RECIPE, LOG, SCORES, MODEL, *STAGE_FOLDERS.values()):
        for partial in out.glob(f".{name}.*"):
            if partial.is_file():
                partial.unlink()
            elif partial not in [_workdir(stage, out) for stage in STAGE_FOLDERS]:
                shutil.rmtree(partial)


def _require_whole(folder: Path) -> None:
    """Check that an encoder folder of the run is as it was written.

    Raises:
        UserError: if a file in it is missing or has changed.
    """
    try:
        require_unchanged(folder)
    except UserError as error:
        raise UserError(
            f"{error}; restore the file, or remove {folder} to make it again"
        ) from error


def _copy_last(recipe: Recipe, out: Path) -> Path:
    """Make `model` from the encoder of the last stage, and return that folder."""
    model = out / MODEL
    if model.exists():
        _require_whole(model)
    else:
        with atomic_folder(model) as partial:
            last = out / STAGE_FOLDERS[recipe.stages[-1].stage]
            shutil.copytree(last, partial, copy_function=link_weights, dirs_exist_ok=True)
    return model


def _train_stage(context: StageContext[Pretext | Unsupervised | Supervised]) -> None:
    stage = context.stage
    world.from_main(lambda: rehearse(context))
    if isinstance(stage, Pretext):
        train_pretext(cast(StageContext[Pretext], context))
    elif isinstance(stage, Unsupervised):
        train_unsupervised(cast(StageContext[Unsupervised], context))
    else:
        train_supervised(cast(StageContext[Supervised], context))
    world.from_main(lambda: _finish(context))


def _finish(context: StageContext[Stage]) -> None:
    context.log.finish_stage()
    shutil.rmtree(context.workdir)


def _stage(recipe: Recipe, name: str) -> Stage:
    return next(stage for stage in recipe.stages if stage.stage == name)


def _workdir(name: str, out: Path) -> Path:
    """Return the folder that holds a stage's checkpoints while it trains."""
    return out / f".{STAGE_FOLDERS[name]}.work"


def _has_started(name: str, out: Path) -> bool:
    """Return whether a stage is finished or has a checkpoint, so that its sizes are fixed."""
    done = (out / STAGE_FOLDERS[name]).exists()
    return done or last_checkpoint(_workdir(name, out)) is not None


def _apply(plan: Callable[[Stage], Stage], recipe: Recipe, name: str) -> Recipe:
    """Return the recipe with the sizes that the plan gives a stage, checked like any recipe."""
    before = _stage(recipe, name)
    after = plan(before)
    if after.model_dump(exclude=set(SIZES)) != before.model_dump(exclude=set(SIZES)):
        raise ValueError(f"the plan for {name} may change only {', '.join(sorted(SIZES))}")
    return _with_stages(recipe, [after if s.stage == name else s for s in recipe.stages])


def _with_stages(recipe: Recipe, stages: list[Stage]) -> Recipe:
    settings = recipe.model_dump() | {"stages": [stage.model_dump() for stage in stages]}
    return Recipe.model_validate(settings)


def _require_same_base(base: BaseEncoder, workdir: Path) -> None:
    """Check that a base is the one with which its stage began, and record it there at first.

    Raises:
        UserError: if it has changed.
    """
    record, found = workdir / BASE, base.lineage.bases[-1]
    if not record.exists():
        with atomic_file(record) as partial:
            partial.write_text(found.fingerprint + "\n", encoding="utf-8")
    # Of a commit of the hub more files may have been downloaded since.
    elif found.revision is None and record.read_text("utf-8").strip() != found.fingerprint:
        raise UserError(
            f"the base {found.name} has changed since the run began, and what was trained fits "
            f"the old one only; restore it, or start again with another --out ({base.folder})"
        )


def _claim(recipe: Recipe, out: Path, *, planned: bool) -> Recipe:
    """Write `recipe.yaml`, or check that the folder's run is of the same recipe.

    Args:
        recipe: what to run.
        out: folder of the run.
        planned: whether a plan decides the sizes of stages. Sizes are then not compared.

    Returns:
        What to run. Its stages are those of the folder's recipe; with a plan, only those that have
        started. A stage that diverged has the new learning rate, warm-up and clipping.

    Raises:
        UserError: if the folder holds a run of another recipe that has begun to train.
    """
    path = out / RECIPE
    if not path.exists():
        write_recipe(recipe, out)
        return recipe
    wanted, known, recipe = recipe, read_recipe(out), as_begun(recipe, out)
    if recipe.backbone.revision is None:  # the commit with which the run began
        recipe = at_commit(known.backbone.revision, recipe)
    elif recipe.backbone != known.backbone:
        recipe = pinned_recipe(recipe)
    diverged = [stage.stage for stage in known.stages if has_diverged(_workdir(stage.stage, out))]
    known = with_remedies(known, recipe, diverged)
    ignored = SIZES if planned else frozenset()
    if _compared(known, ignored) != _compared(recipe, ignored):
        if not any(_has_started(stage, out) for stage in STAGE_FOLDERS):
            for stage in STAGE_FOLDERS:  # what was drawn for the recipe before
                shutil.rmtree(_workdir(stage, out), ignore_errors=True)
            (out / SCORES).unlink(missing_ok=True)
            write_recipe(wanted, out)
            return wanted
        first = known.backbone.revision
        moved = _compared(known, ignored) == _compared(at_commit(first, recipe), ignored)
        other = f"commit, {first}" if moved else "recipe"
        raise UserError(
            f"{out} holds a run of another {other} (see {path}); "
            "give another --out, or remove that folder to start again"
        )
    if is_of_0_1(out):
        _warn_of_0_1(out)
    if diverged:
        write_recipe(known, out)
    stages = [
        _stage(known if not planned or _has_started(stage.stage, out) else recipe, stage.stage)
        for stage in recipe.stages
    ]
    return _with_stages(recipe, stages)


def _compared(recipe: Recipe, ignored: frozenset[str]) -> dict[str, Any]:
    """Return what makes two runs the same: all settings but what only scores and ignored sizes."""
    settings = recipe.model_dump(exclude={"evaluation", "report_to", "stages"})
    stages = [stage.model_dump(exclude=set(ignored)) for stage in recipe.stages]
    for stage in stages:
        if stage["lora"] and stage["lora"]["target_modules"] == TARGETS_OF_0_1:
            stage["lora"]["target_modules"] = None
    return settings | {"during": recipe.evaluation.deciding, "stages": stages}


def _warn_of_0_1(out: Path) -> None:
    """Warn if version 0.1 stopped within stage 1, whose steps are no longer quite the same."""
    if _has_started("pretext", out) and not (out / STAGE_FOLDERS["pretext"]).exists():
        logger.warning(
            "%s was begun by version 0.1; in the steps that are left, every passage weighs the "
            "same, whatever batch it is in, and mntp reads whole passages and draws other masks",
            out,
        )
