"""The results of a study: the scores of every trial, and their mean and deviation over seeds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from llm2comp.errors import UserError
from llm2comp.evaluation.store import Score
from llm2comp.training.study import provenance
from llm2comp.training.study.comparison import Comparison
from llm2comp.training.study.provenance import Session
from llm2comp.utils import tables
from llm2comp.utils.files import atomic_file

JSON = "results.json"
MARKDOWN = "results.md"


@dataclass
class TrialResult:
    """What is known about one trial.

    Attributes:
        setting: name of the setting.
        seed: seed of the run.
        value: value of the tuned key; `None` if nothing is tuned.
        development: scores of the last stage on the development tasks, if the trial was used for
            tuning.
        scores: scores by the label of the stage; empty if the value was not chosen.
        passages: number of passages that stage 1 was trained on; a repeated passage counts again.
        tokens: number of tokens in these passages.
        seconds: training time.
        dtype: precision of the computation.
        error: why the trial failed; empty if it did not.
    """

    setting: str
    seed: int
    value: Any = None
    development: list[Score] = field(default_factory=list)
    scores: dict[str, list[Score]] = field(default_factory=dict)
    passages: int = 0
    tokens: int = 0
    seconds: float = 0.0
    dtype: str = ""
    error: str = ""


@dataclass(frozen=True)
class Row:
    """One row of the table of scores.

    Attributes:
        name: name of the row.
        setting: name of the setting, or of the baseline.
        stage: label of the stage that was scored; empty for a baseline.
        runs: scores of each run.
    """

    name: str
    setting: str
    stage: str
    runs: list[list[Score]]


@dataclass
class Results:
    """The results of a study so far. A study needs nothing else to continue.

    Attributes:
        study: name of the study.
        trials: results by the name of the trial. In `results.json` the key is `cells`, as in
            version 0.1, so that each version reads the other's files.
        baselines: scores of the training-free encoders, by name.
        errors: why a baseline failed, by its name.
        comparison: of the settings with one of them, if the study asks for it.
        sessions: the calls that made the results; none of those of an earlier version.
    """

    study: str
    trials: Annotated[dict[str, TrialResult], Field(alias="cells")] = field(default_factory=dict)
    baselines: dict[str, list[Score]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    comparison: Comparison | None = None
    sessions: list[Session] = field(default_factory=list)

    @property
    def failed(self) -> dict[str, str]:
        """What went wrong, by the name of the trial or baseline."""
        failed = {name: trial.error for name, trial in self.trials.items() if trial.error}
        return failed | self.errors

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that were scored, in their order."""
        names = [score.task for row in self.rows() for run in row.runs for score in run]
        return list(dict.fromkeys(names))

    def rows(self) -> list[Row]:
        """Return one row per baseline, then one row per setting and stage."""
        scored = [trial for trial in self.trials.values() if trial.scores]
        labels = list(dict.fromkeys(label for trial in scored for label in trial.scores))
        rows = [Row(name, name, "", [scores]) for name, scores in self.baselines.items()]
        for setting in dict.fromkeys(trial.setting for trial in scored):
            for label in labels:
                name = setting if len(labels) == 1 else f"{setting}, {label}"
                of_setting = [trial.scores for trial in scored if trial.setting == setting]
                runs = [scores[label] for scores in of_setting if label in scores]
                if runs:  # a setting may have fewer stages than another
                    rows.append(Row(name, setting, label, runs))
        return rows

    def keep_scores_of(self, values: Mapping[str, Any]) -> bool:
        """Remove the scores of trials with another value than the one that their setting takes.

        A value is scored because it was the best of those that could be judged. One that failed
        then may be better when it is tried again.

        Args:
            values: of the tuned key, by setting.

        Returns:
            Whether there were such scores.
        """
        others = [
            trial
            for trial in self.trials.values()
            if trial.scores and trial.value != values.get(trial.setting, trial.value)
        ]
        for trial in others:
            trial.scores = {}
        return bool(others)

    def score_table(self) -> tables.Cells:
        """Return a table with the mean and deviation over runs, one line for each of `rows()`.

        The deviation is the sample standard deviation. In the column `mean` it is the deviation of
        the runs' means over tasks. Settings may have different tasks. A task that a row lacks is
        `MISSING`, and so is its mean, which other rows have over other tasks.
        """
        tasks = self.tasks
        body = []
        for row in self.rows():
            points = [{score.task: score.main_score for score in run} for run in row.runs]
            of_tasks = ([run[task] for run in points if task in run] for task in tasks)
            spreads = [spread(values) if values else tables.MISSING for values in of_tasks]
            whole = [run for run in points if len(run) == len(tasks)]
            means = spread([statistics.mean(run.values()) for run in whole]) if whole else None
            body.append([row.name, str(len(row.runs)), *spreads, means or tables.MISSING])
        return [["setting", "runs", *tasks, "mean"], *body]

    def tuning_table(self) -> tables.Cells:
        """Return a table of the trials that were used for tuning.

        Each line has the value of the tuned key and the mean score on the development tasks.
        """
        judged = [trial for trial in self.trials.values() if trial.development]
        body = [
            [trial.setting, f"{trial.value:g}", f"{mean(trial.development):.1f}"]
            for trial in judged
        ]
        return [["setting", "value", "development"], *body]

    def write(self, out: Path) -> None:
        """Write `results.json` and `results.md` to the study's folder."""
        unset = {name for name in ("comparison", "sessions") if not getattr(self, name)}
        with atomic_file(out / JSON) as partial:
            json = TypeAdapter(Results).dump_json(self, indent=1, by_alias=True, exclude=unset)
            partial.write_bytes(json + b"\n")
        with atomic_file(out / MARKDOWN) as partial:
            partial.write_text(self._markdown(), encoding="utf-8")

    def _markdown(self) -> str:
        """Return the tables, how to read them, and where the results come from."""
        parts = [tables.markdown(self.score_table())]
        if self.comparison:
            parts += [tables.markdown(self.comparison.table()), f"{self.comparison.notes()}\n"]
        if self.sessions:
            trials = self.trials.values()
            lines = provenance.describe(
                self.sessions,
                (trial.seed for trial in trials),
                (trial.dtype for trial in trials),
                {*self.trials, *self.baselines},
            )
            parts.append("".join(f"- {line}\n" for line in lines))
        return "\n".join(parts)


def read(out: Path, study: str) -> Results:
    """Return the results in a study's folder; empty results if the folder has none yet.

    Args:
        out: folder of the study.
        study: name of the study, for empty results.

    Raises:
        UserError: if `results.json` cannot be read.
    """
    file = out / JSON
    if not file.exists():
        return Results(study)
    try:
        return TypeAdapter(Results).validate_json(file.read_bytes())
    except ValidationError as error:
        raise UserError(f"{file} cannot be read; remove it to score the trials again") from error


def mean(scores: Sequence[Score]) -> float:
    """Return the mean of the main scores over tasks."""
    return statistics.mean(score.main_score for score in scores)


def spread(values: Sequence[float]) -> str:
    """Return the mean as text and, if there are several values, the sample standard deviation."""
    centre = f"{statistics.mean(values):.1f}"
    return centre if len(values) == 1 else f"{centre} ± {statistics.stdev(values):.1f}"
