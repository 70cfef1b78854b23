"""Run a study: cell after cell, going on where it was stopped, past cells that fail."""

import json
import shutil
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from rich.console import Console
from sentence_transformers import SentenceTransformer

from llm2comp.errors import UserError, one_line
from llm2comp.evaluation import runner, suites
from llm2comp.evaluation.store import Score, fingerprint
from llm2comp.recipe import STAGE_FOLDERS, Evaluation, Recipe, load_recipe, parse_recipe
from llm2comp.training import pipeline, run_folder, scoring
from llm2comp.training.run_log import RunLog
from llm2comp.training.study import results
from llm2comp.training.study.plan import Cell, Study, cell
from llm2comp.utils.files import atomic_file, atomic_folder
from llm2comp.utils.hardware import compute_dtype
from llm2comp.utils.yaml_files import read_yaml

CELLS = "cells"
STUDY = "study.yaml"


class StudyRun:
    """A study in its folder.

    ``out`` gets ``study.yaml``, a run a cell under ``cells/``, and, anew after
    every cell, ``results.json`` and ``results.md``. What is in ``results.json``
    is not run again, so the cells' folders may be removed. Where a cell of this
    study, or of one beside it, has the same first stages, they are taken over.

    Args:
        study: what to run.
        out: folder of the study.
        console: where progress is shown.

    Raises:
        UserError: if ``out`` holds another study.
    """

    def __init__(
        self,
        study: Study,
        out: Path,
        console: Console | None = None,
        reuse: Sequence[Path] = (),
    ) -> None:
        _claim(study, out)
        self.study = study
        self.out = out
        self.reuse = reuse
        self.console = console or Console(stderr=True)
        self.found = results.read(out, study.name)
        self._scored: dict[str, list[Score]] = {}

    def run(self) -> results.Results:
        """Run and score every cell that is not finished, and return the results.

        A cell that fails is reported and left out; the next call tries it again.
        """
        for known in self.found.cells.values():
            known.error = ""
        self.found.errors.clear()
        chosen = {setting: self._tuned(setting) for setting in self.study.settings}
        for seed in self.study.seeds:
            for setting, value in chosen.items():
                one = cell(self.study, setting, seed, value)
                known = self._known(one)
                if not (known.scores or known.error):  # a trial's failure is not tried twice
                    self._attempt(one, self._score)
        self._score_baselines()
        return self.found

    def _tuned(self, setting: str) -> Any:
        """Return the value of the tuned key that is best for a setting on development tasks."""
        tuning = self.study.tuning
        if tuning is None:
            return None
        judged: dict[Any, float] = {}
        for value in tuning.values:
            trial = cell(self.study, setting, self.study.seeds[0], value)
            known = self._known(trial)
            if not known.development:
                self._attempt(trial, self._judge)
            if known.development:
                judged[value] = results.mean(known.development)
        best = max(judged, key=lambda value: judged[value], default=tuning.values[0])
        shown = ", ".join(f"{value:g} has {score:.1f}" for value, score in judged.items())
        self.console.print(f"{setting}: {tuning.key} {shown}: {best:g} is taken", highlight=False)
        return best

    def _known(self, one: Cell) -> results.TrialResult:
        fresh = results.TrialResult(one.setting, one.seed, one.value)
        return self.found.cells.setdefault(one.name, fresh)

    def _attempt(self, one: Cell, work: Callable[[Cell, results.TrialResult], None]) -> None:
        """Do a cell's work and write the results; if it fails, so that the others go on."""
        known = self._known(one)
        try:
            work(one, known)
        except Exception as error:  # whatever it is
            known.error = describe(error)
            self.console.print(f"{one.name} failed: {known.error}", markup=False)
        self.found.write(self.out)

    def _judge(self, trial: Cell, known: results.TrialResult) -> None:
        """Train a trial and score its last stage on the development tasks."""
        assert self.study.tuning is not None
        self._train(trial, known)
        *_, load = scoring.stage_models(trial.run, self._folder(trial)).values()
        chosen = suites.tasks(self.study.tuning.tasks, quick=True)
        known.development = runner.evaluate(load(), trial.name, chosen)

    def _score(self, one: Cell, known: results.TrialResult) -> None:
        """Train a cell, if its trial has not, and score each of its stages."""
        self._train(one, known)
        models = scoring.stage_models(one.run, self._folder(one))
        known.scores = {
            label: self._score_stage(load(), f"{one.name} {label}", one.run.evaluation)
            for label, load in models.items()
        }

    def _score_stage(
        self, model: SentenceTransformer, name: str, evaluation: Evaluation
    ) -> list[Score]:
        """Score a stage's encoder, once if several cells have taken it over."""
        mark = fingerprint(model)
        if mark not in self._scored:
            chosen = suites.tasks(evaluation.tasks, quick=evaluation.quick)
            self._scored[mark] = runner.evaluate(model, name, chosen)
        return self._scored[mark]

    def _train(self, one: Cell, known: results.TrialResult) -> None:
        folder = self._folder(one)
        trained = [c.seconds for c in self.found.cells.values() if c.seconds]
        if not known.seconds:
            left = self.study.size - len(trained)
            title = f"{one.name}: {left} of {self.study.size} cells left"
            if trained:
                title += f", about {timedelta(seconds=round(left * mean(trained)))} of training"
            self.console.rule(title)
        self._reuse_stages(one.run, folder)
        pipeline.train(one.run, folder, self.console)
        shutil.rmtree(folder / run_folder.MODEL)  # the last stage's folder is the same encoder
        events = [json.loads(line) for line in (folder / run_folder.LOG).open(encoding="utf-8")]
        known.seconds = sum(event.get("seconds", 0.0) for event in events)
        known.dtype = str(compute_dtype(one.run.backbone.dtype)).removeprefix("torch.")
        for event in events:
            if "passages" in event:
                known.passages, known.tokens = event["passages"], event["tokens"]

    def _reuse_stages(self, run: Recipe, folder: Path) -> None:
        """Copy the first stages that another cell has alike, as many of them as there are."""
        names = [STAGE_FOLDERS[stage.stage] for stage in run.stages]
        for count in range(len(names), 0, -1):
            if (folder / names[count - 1]).exists():
                return
            for other in sorted(self.out.parent.glob(f"*/{CELLS}/*/{names[count - 1]}")):
                theirs = load_recipe(other.parent / run_folder.RECIPE)
                if _first_stages(theirs, count) == _first_stages(run, count):
                    _copy_stages(names[:count], other.parent, folder)
                    self.console.print(f"{other.name} is that of {other.parent}", markup=False)
                    return

    def _folder(self, one: Cell) -> Path:
        return self.out / CELLS / one.name

    def _score_baselines(self) -> None:
        run = parse_recipe({"name": self.study.name} | self.study.recipe, [], self.study.name)
        evaluation = run.evaluation
        for name, load in scoring.baseline_models(run).items():
            if name in self.found.baselines:
                continue
            try:
                chosen = suites.tasks(evaluation.tasks, quick=evaluation.quick)
                self.found.baselines[name] = runner.evaluate(load(), name, chosen)
            except Exception as error:  # whatever it is, the others go on
                self.found.errors[name] = describe(error)
                self.console.print(f"{name} failed: {self.found.errors[name]}", markup=False)
            self.found.write(self.out)


def describe(error: Exception) -> str:
    """Return an error in one line."""
    return one_line(f"{type(error).__name__}: {error}", limit=None)


def _first_stages(run: Recipe, count: int) -> dict[str, Any]:
    """Return what the first stages of a run depend on."""
    settings = run.model_dump(exclude={"name", "evaluation", "stages"})
    return settings | {"stages": [stage.model_dump() for stage in run.stages[:count]]}


def _copy_stages(names: Sequence[str], source: Path, target: Path) -> None:
    """Copy the encoder folders that are not there yet, and what the log says of their stages."""
    stages = {folder: stage for stage, folder in STAGE_FOLDERS.items()}
    events = [json.loads(line) for line in (source / run_folder.LOG).open(encoding="utf-8")]
    log = RunLog(target / run_folder.LOG, Console())
    for name in names:
        if not (target / name).exists():
            with atomic_folder(target / name) as partial:
                shutil.copytree(source / name, partial, dirs_exist_ok=True)
                for event in events:
                    if event["stage"] == stages[name]:
                        log.write(**event)


def _claim(study: Study, out: Path) -> None:
    """Write ``study.yaml``, or check that the study that is there is the same."""
    path = out / STUDY
    mine = study.model_dump()
    if path.exists():
        if read_yaml(path, "study") != mine:
            raise UserError(
                f"{out} holds another study (see {path}); "
                "give another --out, or remove that folder to begin anew"
            )
        return
    with atomic_file(path) as partial:
        text = yaml.safe_dump(mine, sort_keys=False, allow_unicode=True)
        partial.write_text(text, encoding="utf-8")
