"""Score a run: its baselines and the encoder after each stage, for one table."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mteb.abstasks import AbsTask
from sentence_transformers import SentenceTransformer

from llm2comp.errors import NoScoreError
from llm2comp.evaluation import baselines, late_interaction, runner, suites
from llm2comp.evaluation.evaluate import MANY_VECTORS
from llm2comp.inference.load import load
from llm2comp.model.multi_vector.memory_vectors import append_memory_vectors
from llm2comp.recipe import STAGE_FOLDERS, Recipe
from llm2comp.recipe_parts import Evaluation
from llm2comp.training.run_folder import (
    STAGE_LABELS,
    Scores,
    as_begun,
    read_recipe,
    read_scores,
    write_scores,
)

logger = logging.getLogger("llm2comp")

Models = dict[str, Callable[[], SentenceTransformer]]
"""For each row of the table, its name and a function that loads its model."""


def check_evaluation(recipe: Recipe) -> None:
    """Check the names of a recipe's tasks and baselines before anything is trained.

    Raises:
        UserError: if one of them is unknown, or the recipe scores k vectors and a task has no such
            score.
    """
    tasks_of(recipe.evaluation)
    for name in recipe.evaluation.baselines:
        baselines.require_baseline(name)


def tasks_of(evaluation: Evaluation) -> list[AbsTask]:
    """Return new tasks of a recipe.

    Raises:
        UserError: as `check_evaluation`.
    """
    tasks = suites.tasks(evaluation.tasks, quick=evaluation.quick)
    if evaluation.vectors == "one":
        return tasks
    late_interaction.require_tasks(tasks, named=True)
    return late_interaction.with_max_sim(tasks)


def score_run(recipe: Recipe, out: Path) -> Scores:
    """Score the recipe's baselines and the encoder after each stage.

    The models compute in the recipe's `backbone.dtype`, as in training. Each finished row is
    written to `out/scores.json`, so that a stopped call does not compute it twice. Of each row only
    the tasks that have no score are scored, and the rows and tasks that an earlier evaluation named
    stay in the file. Scores of the other size, quick or whole, do not: a table would mix the two.

    Args:
        recipe: its `evaluation` names the tasks and the baselines.
        out: the folder of the finished run.

    Returns:
        Scores by row, in the order of the table. A task on which an encoder has no score is left
        out, with a warning.
    """
    recipe, settings = as_begun(recipe, out), recipe.evaluation
    known = {
        name: same
        for name, row in read_scores(out).items()
        if (same := [score for score in row if score.quick == settings.quick])
    }
    rows: Scores = {}
    commit = {"revision": read_recipe(out).backbone.revision}  # that was trained on
    recipe = recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update=commit)})
    models = stage_models(recipe, out)
    if settings.vectors == "k":  # a row of its own, because scores of a row are not computed again
        models = {f"{label}{MANY_VECTORS}": build for label, build in models.items()}
    models = baseline_models(recipe) | models
    for name, load_model in models.items():
        found = {score.task: score for score in known.get(name, [])}
        missing = [task for task in tasks_of(settings) if task.metadata.name not in found]
        if missing:
            model = load_model()
            for task in missing:  # one by one: a collapsed encoder has no score on some
                try:
                    scores = runner.evaluate(model, name, [task])
                except NoScoreError as error:
                    logger.warning("%s", error)
                    continue
                found |= {score.task: score for score in scores}
                known[name] = list(found.values())
                write_scores(out, {row: known[row] for row in [*models, *known] if row in known})
        rows[name] = [found[task] for task in settings.tasks if task in found]
    return rows


def forget_scores(stage: str, out: Path) -> None:
    """Remove the scores of the encoder after a stage, because it is made anew.

    Args:
        stage: name of the stage.
        out: the folder of the run.

    Raises:
        UserError: if `scores.json` is damaged.
    """
    label, rows = STAGE_LABELS[stage], read_scores(out)
    kept = {n: row for n, row in rows.items() if n not in (label, f"{label}{MANY_VECTORS}")}
    if kept != rows:
        write_scores(out, kept)


def baseline_models(recipe: Recipe) -> Models:
    """Return loaders of the recipe's baselines, in the precision of training."""
    backbone = recipe.backbone
    return {
        name: partial(
            baselines.load_baseline,
            name,
            backbone.name,
            backbone.dtype,
            add_bos=backbone.add_bos,
            revision=backbone.revision,
            trust_remote_code=backbone.trust_remote_code,
        )
        for name in recipe.evaluation.baselines
    }


def stage_models(recipe: Recipe, out: Path) -> Models:
    """Return loaders of the encoder after each stage, by the stage's label.

    With `evaluation.vectors: k`, an encoder gives its k memory vectors.

    Args:
        recipe: the recipe that was run.
        out: the folder of the finished run.
    """
    folders = {
        STAGE_LABELS[stage.stage]: str(out / STAGE_FOLDERS[stage.stage]) for stage in recipe.stages
    }
    backbone = recipe.backbone

    def build(folder: str) -> SentenceTransformer:
        model = load(folder, backbone.dtype, trust_remote_code=backbone.trust_remote_code)
        many = recipe.evaluation.vectors == "k"
        return append_memory_vectors(model, folder) if many else model

    return {label: partial(build, folder) for label, folder in folders.items()}
