"""Run a study, one trial after another; continue a stopped study; report trials that fail."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from rich.console import Console
from sentence_transformers import SentenceTransformer

from llm2comp.errors import UserError, counted, one_line
from llm2comp.evaluation import runner, store
from llm2comp.evaluation.intervals import explains
from llm2comp.evaluation.store import ResultStore, Score
from llm2comp.model.base import pinned_recipe
from llm2comp.recipe import STAGE_FOLDERS, Recipe
from llm2comp.recipe_parts import Evaluation
from llm2comp.training import pipeline, run_folder, scoring
from llm2comp.training.monitoring.run_log import RunLog
from llm2comp.training.study import comparison, kept_items, provenance, results
from llm2comp.training.study.plan import (
    Study,
    Trial,
    first_trials,
    read_study,
    recipe_of_baselines,
    trial,
)
from llm2comp.training.study.provenance import Session
from llm2comp.training.study.results import TrialResult
from llm2comp.utils.files import atomic_file, atomic_folder, require_folder
from llm2comp.utils.hardware import compute_dtype

TRIALS = "cells"
"""Subfolder of a study with one run folder per trial. Version 0.1 gave it this name."""
BEGUN = f"{TRIALS}/*/{run_folder.RECIPE}"
SCORES = "scores"
"""Subfolder of a study with a store of results; a model is `<trial> <label of the stage>`."""
STUDY = "study.yaml"
NOT_RUN = ("plot", "compare")
"""Keys of a study that change nothing that is run. They may differ when a study continues."""


class StudyRun:
    """A study in its folder.

    The folder gets `study.yaml`, one run folder per trial under `cells/`, one result per stage and
    task under `scores/`, and `results.json`, `results.md` and `items.json.xz`, which are written
    again after every trial. These four files are all that a study needs to continue, also on
    another machine: a trial whose scores are in `results.json` is not run again, and settings are
    compared by the items that are kept.

    A trial whose first stages are those of another trial of this study, or of a study in `reuse`,
    copies these stages and does not train them again.

    Args:
        study: what to run.
        out: folder of the study.
        console: where progress is shown; standard error by default.
        reuse: folders of other studies whose trained stages may be copied.

    Raises:
        UserError: if `out` holds another study, a folder in `reuse` holds no study, or a task or
            baseline is unknown.
    """

    def __init__(
        self,
        study: Study,
        out: Path,
        console: Console | None = None,
        reuse: Sequence[Path] = (),
    ) -> None:
        require_folder(out)
        for folder in reuse:
            if not (folder / STUDY).is_file():
                raise UserError(
                    f"--reuse {folder}: not the folder of a study, because it has no {STUDY}"
                )
        _check_evaluations(study)
        self.study = study = _claim(study, out)
        self.out = out
        self.reuse = reuse
        self.console = console or Console(stderr=True)
        self.results = results.read(out, study.name)
        self.items = kept_items.read(out)
        self.store = ResultStore(out / SCORES)
        self.session = Session.begin()

    def run(self) -> results.Results:
        """Run and score every trial that is not finished, and return the results.

        A trial that fails is reported, and the others continue. The next call tries it again.
        """
        for result in self.results.trials.values():
            result.error = ""
        self.results.errors.clear()
        best_values = {setting: self._tune(setting) for setting in self.study.settings}
        if self.results.keep_scores_of(best_values):
            self.results.write(self.out)
        for seed in self.study.seeds:
            for setting, value in best_values.items():
                planned = trial(self.study, setting, seed, value)
                result = self._result_of(planned)
                # A trial that failed while it was tuned is not tried twice in one call.
                if not (result.scores or result.error):
                    self._attempt(planned, self._score)
        self._score_baselines()
        self._compare()
        return self.results

    def _tune(self, setting: str) -> Any:
        """Return the value of the tuned key that is best for a setting on development tasks."""
        tuning = self.study.tuning
        if tuning is None:
            return None
        values = tuning.values_for(setting)
        judged: dict[Any, float] = {}
        for value in values:
            candidate = trial(self.study, setting, self.study.seeds[0], value)
            result = self._result_of(candidate)
            if not result.development:
                self._attempt(candidate, self._judge)
            if result.development:
                judged[value] = results.mean(result.development)
        best = max(judged, key=lambda value: judged[value], default=values[0])
        shown = ", ".join(f"{score:.1f} with {value:g}" for value, score in judged.items())
        self.console.print(
            f"{setting}: {tuning.key}={best:g} is taken (development score: {shown})",
            highlight=False,
        )
        return best

    def _result_of(self, planned: Trial) -> TrialResult:
        """Return what is known about a trial; of a new trial, an empty result."""
        fresh = TrialResult(planned.setting, planned.seed, planned.value)
        return self.results.trials.setdefault(planned.name, fresh)

    def _attempt(self, planned: Trial, work: Callable[[Trial, TrialResult], None]) -> None:
        """Do a trial's work and write the results. If it fails, the other trials continue."""
        result = self._result_of(planned)
        try:
            work(planned, result)
        except Exception as error:  # any error, because the other trials must continue
            result.error = describe(error)
            self.console.print(f"{planned.name} failed: {result.error}", markup=False)
        finally:  # also if the user stops the study, because the time counts
            self._save(planned.name)

    def _save(self, name: str) -> None:
        """Write the results after the work on a trial or baseline."""
        if not self.session.names:
            self.results.sessions.append(self.session)
        if name not in self.session.names:
            self.session.names.append(name)
        self.session.end = provenance.now()
        self.results.write(self.out)
        self._keep_items()

    def _keep_items(self) -> None:
        """Write the items of the trials that are scored, if there are new ones."""
        scored = {
            (stored_name(name, label), score.task)
            for name, result in self.results.trials.items()
            for label, row in result.scores.items()
            for score in row
        }
        known = self.items
        self.items = kept_items.add_stored(known, self.store, scored)
        if self.items != known:
            kept_items.write(self.out, self.items)

    def _judge(self, candidate: Trial, result: TrialResult) -> None:
        """Train a trial and score its last stage on the development tasks."""
        assert self.study.tuning is not None
        self._train(candidate, result)
        *_, last = scoring.stage_models(candidate.recipe, self._folder(candidate)).items()
        vectors = candidate.recipe.evaluation.vectors
        tasks = Evaluation(tasks=self.study.tuning.tasks, quick=True, vectors=vectors)
        result.development = self._score_stage(candidate, *last, tasks)

    def _score(self, planned: Trial, result: TrialResult) -> None:
        """Train a trial, if tuning has not done so already, and score each of its stages."""
        self._train(planned, result)
        models = scoring.stage_models(planned.recipe, self._folder(planned))
        result.scores = {
            label: self._score_stage(planned, label, load, planned.recipe.evaluation)
            for label, load in models.items()
        }

    def _score_stage(
        self,
        planned: Trial,
        label: str,
        load: Callable[[], SentenceTransformer],
        evaluation: Evaluation,
    ) -> list[Score]:
        """Score a stage's encoder, once if several trials share it."""
        model, name = load(), stored_name(planned.name, label)
        tasks = scoring.tasks_of(evaluation)
        mark = store.fingerprint(model)
        keys = {store.key(mark, task, "", quick=evaluation.quick) for task in tasks}
        for result in self.store.all():
            if result.key in keys and result.model != name:
                self.store.save(replace(result, model=name))
        return runner.evaluate(model, name, tasks, self.store)

    def _train(self, planned: Trial, result: TrialResult) -> None:
        folder = self._folder(planned)
        if not result.seconds:
            self.console.rule(self._title(planned))
        recipe = self._reuse_stages(self._as_begun(planned.recipe), folder)
        pipeline.train(recipe, folder, self.console)
        shutil.rmtree(folder / run_folder.MODEL)  # the last stage's folder is the same encoder
        events = run_folder.read_events(folder)
        result.seconds = sum(event.get("seconds", 0.0) for event in events)
        dtype = compute_dtype(planned.recipe.backbone.dtype)
        result.dtype = str(dtype).removeprefix("torch.")
        for event in events:
            if "passages" in event:
                result.passages, result.tokens = event["passages"], event["tokens"]

    def _as_begun(self, recipe: Recipe) -> Recipe:
        """Return what to run, so that a study that version 0.1 began compares like with like."""
        begun_by_0_1 = any(run_folder.is_of_0_1(path.parent) for path in self.out.glob(BEGUN))
        return run_folder.as_in_0_1(recipe) if begun_by_0_1 else recipe

    def _title(self, planned: Trial) -> str:
        """Say how many trials are left and, once one is trained, how long they will take."""
        trained = [result.seconds for result in self.results.trials.values() if result.seconds]
        # More than planned are trained if a value failed and is the best when it is tried again.
        left = max(1, self.study.size - len(trained))
        title = f"{planned.name}: {left} of {counted(self.study.size, 'trial')} left"
        if trained:
            title += f", about {timedelta(seconds=round(left * mean(trained)))} of training"
        return title

    def _reuse_stages(self, recipe: Recipe, folder: Path) -> Recipe:
        """Copy as many first stages as another trial has trained with the same settings.

        Returns:
            What to run: in a new folder, with the commit of the backbone that the stages are of.
        """
        names = [STAGE_FOLDERS[stage.stage] for stage in recipe.stages]
        begun = (folder / run_folder.RECIPE).exists()
        backbone = run_folder.read_recipe(folder).backbone if begun else recipe.backbone
        ours: Recipe | None = None
        for count in range(len(names), 0, -1):
            if (folder / names[count - 1]).exists():
                break
            for run in self._trained_runs():
                if not (run / names[count - 1]).exists():
                    continue
                ours = ours or pinned_recipe(recipe.model_copy(update={"backbone": backbone}))
                theirs = run_folder.read_recipe(run)
                if _first_stages(theirs, count) == _first_stages(ours, count):
                    _copy_stages(names[:count], run, folder)
                    self.console.print(f"{names[count - 1]}: copied from {run}", markup=False)
                    return recipe if begun else ours
        return recipe

    def _trained_runs(self) -> Iterator[Path]:
        """Yield the run folders of this study's trials, then of the studies to reuse."""
        for study in (self.out, *self.reuse):
            yield from (path.parent for path in sorted(study.glob(BEGUN)))

    def _folder(self, planned: Trial) -> Path:
        return self.out / TRIALS / planned.name

    def _score_baselines(self) -> None:
        recipe = recipe_of_baselines(self.study)
        if recipe is None:
            return
        evaluation = recipe.evaluation
        for name, load in scoring.baseline_models(recipe).items():
            if name in self.results.baselines:
                continue
            try:
                tasks = scoring.tasks_of(evaluation)
                self.results.baselines[name] = runner.evaluate(load(), name, tasks, self.store)
            except Exception as error:  # any error, because the other baselines must continue
                self.results.errors[name] = describe(error)
                self.console.print(f"{name} failed: {self.results.errors[name]}", markup=False)
            self._save(name)

    def _compare(self) -> None:
        """Compare the settings, if the study asks for it, and write the results.

        A folder that has its `results.json` and no items keeps the comparison that is in it.
        """
        self._keep_items()
        known, reference = self.results.comparison, self.study.compare
        if known and known.reference == reference and not self.items:
            return
        if reference is None:
            self.results.comparison = None
        else:
            scores, items = {}, {}
            for name, result in self.results.trials.items():
                for label, row in result.scores.items():
                    run = comparison.Run(result.setting, result.seed, label)
                    scores[run] = row
                    kept = self.items.get(stored_name(name, label), {})
                    for score in row:
                        found = kept.get(score.task, {})
                        items[run, score.task] = found if explains(found, score.main_score) else {}
            self.results.comparison = comparison.compare(scores, items, reference)
        if self.results.comparison != known:
            self.results.write(self.out)


def stored_name(trial: str, label: str) -> str:
    """Return the name in the store of the encoder of a trial after a stage.

    Args:
        trial: name of the trial.
        label: of the stage.
    """
    return f"{trial} {label}"


def describe(error: Exception) -> str:
    """Return an error's type and message in one line."""
    return f"{type(error).__name__}: {one_line(error, limit=None)}"


def _first_stages(recipe: Recipe, count: int) -> dict[str, Any]:
    """Return the settings that the first `count` stages of a run depend on."""
    settings = recipe.model_dump(exclude={"name", "evaluation", "report_to", "stages"})
    stages = [stage.model_dump() for stage in recipe.stages[:count]]
    return settings | {"during": recipe.evaluation.deciding, "stages": stages}


def _copy_stages(names: Sequence[str], source: Path, target: Path) -> None:
    """Copy stages from one run folder to another, with the lines that the log has about them.

    A stage that the target already has is left as it is.
    """
    stages = {folder: stage for stage, folder in STAGE_FOLDERS.items()}
    events = run_folder.read_events(source)
    log = RunLog(target / run_folder.LOG, Console())
    log.drop_half_line()
    for name in names:
        if not (target / name).exists():
            with atomic_folder(target / name) as partial:
                shutil.copytree(source / name, partial, dirs_exist_ok=True)
                log.start_stage(stages[name], None)  # without lines of a copy that was stopped
                for event in events:
                    if event["stage"] == stages[name]:
                        log.write(**event)


def _check_evaluations(study: Study) -> None:
    """Check what all trials are scored on, because a trial is scored only after it has trained.

    Raises:
        UserError: as `scoring.check_evaluation`.
    """
    recipes = [one.recipe for one in first_trials(study)]
    if (shared := recipe_of_baselines(study)) is not None:
        recipes.append(shared)
    for recipe in recipes:
        scoring.check_evaluation(recipe)


def _claim(study: Study, out: Path) -> Study:
    """Write `study.yaml`, or check that the folder's study is the same one.

    Returns:
        The study. If its recipe leaves BOS open, it has the choice with which the folder began, see
        `run_folder.as_begun`.
    """
    path = out / STUDY
    known = read_study(path) if path.exists() else None
    older = known is not None and not run_folder.chooses_bos(known.recipe)
    default = True if older else None

    def as_begun(study: Study) -> Study:
        recipe = run_folder.with_choice_of_bos(study.recipe, default=default)
        return study.model_copy(update={"recipe": recipe})

    study = as_begun(study)
    if known is not None:
        ignored = set(NOT_RUN)
        if as_begun(known).model_dump(exclude=ignored) != study.model_dump(exclude=ignored):
            raise UserError(
                f"{out} holds another study (see {path}); "
                "give another --out, or remove that folder to start again"
            )
        return study
    unset = {key for key in NOT_RUN if getattr(study, key) is None}
    with atomic_file(path) as file:
        settings = study.model_dump(exclude=unset)
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        file.write_text(text, encoding="utf-8")
    return study
