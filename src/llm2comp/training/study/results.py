"""What a study has found: every cell's scores, and their mean and deviation over seeds."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from llm2comp.errors import UserError
from llm2comp.evaluation.store import Score
from llm2comp.utils import tables
from llm2comp.utils.files import atomic_file

JSON = "results.json"
MARKDOWN = "results.md"


@dataclass
class TrialResult:
    """What is known of one cell.

    Attributes:
        setting: name of the row.
        seed: of the run.
        value: of the tuned key; None if nothing is tuned.
        development: scores of the last stage on the development tasks, if it was a trial.
        scores: by the label of a stage; none if the value was not chosen.
        passages: that stage 1 saw, repetitions counted.
        tokens: of these passages.
        seconds: of training.
        dtype: that it computed in.
        error: why it failed.
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
    """A row of the table.

    Attributes:
        name: of the row.
        setting: or baseline.
        stage: label of the stage that was scored; empty for a baseline.
        runs: scores of each run.
    """

    name: str
    setting: str
    stage: str
    runs: list[list[Score]]


@dataclass
class Results:
    """What a study has found so far; all that is needed to go on with it.

    Attributes:
        study: its name.
        cells: by their names.
        baselines: scores of the training-free encoders.
        errors: of baselines that failed.
    """

    study: str
    cells: dict[str, TrialResult] = field(default_factory=dict)
    baselines: dict[str, list[Score]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> dict[str, str]:
        """What went wrong, by the name of the cell or baseline."""
        return {n: c.error for n, c in self.cells.items() if c.error} | self.errors

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that were scored, in their order."""
        found = [score.task for row in self.rows() for run in row.runs for score in run]
        return list(dict.fromkeys(found))

    def rows(self) -> list[Row]:
        """Return a row a baseline, then a row a setting and stage."""
        scored = [one for one in self.cells.values() if one.scores]
        labels = list(dict.fromkeys(label for one in scored for label in one.scores))
        rows = [Row(name, name, "", [scores]) for name, scores in self.baselines.items()]
        for setting in dict.fromkeys(one.setting for one in scored):
            for label in labels:
                name = setting if len(labels) == 1 else f"{setting}, {label}"
                runs = [one.scores[label] for one in scored if one.setting == setting]
                rows.append(Row(name, setting, label, runs))
        return rows

    def score_table(self) -> tables.Cells:
        """Return a row each of :meth:`rows`: mean ± deviation over runs.

        The deviation is the sample standard deviation; in the column ``mean``
        it is that of the runs' means over tasks.
        """
        tasks = self.tasks
        body = []
        for row in self.rows():
            points = [{score.task: score.main_score for score in run} for run in row.runs]
            spreads = [spread([run[task] for run in points]) for task in tasks]
            means = spread([statistics.mean(run.values()) for run in points])
            body.append([row.name, str(len(row.runs)), *spreads, means])
        return [["setting", "runs", *tasks, "mean"], *body]

    def tuning_table(self) -> tables.Cells:
        """Return a row a trial: its value and its mean on the development tasks."""
        trials = [one for one in self.cells.values() if one.development]
        body = [[one.setting, f"{one.value:g}", f"{mean(one.development):.1f}"] for one in trials]
        return [["setting", "value", "development"], *body]

    def write(self, out: Path) -> None:
        """Write ``results.json`` and ``results.md``."""
        with atomic_file(out / JSON) as partial:
            partial.write_bytes(TypeAdapter(Results).dump_json(self, indent=1) + b"\n")
        with atomic_file(out / MARKDOWN) as partial:
            partial.write_text(tables.markdown(self.score_table()), encoding="utf-8")


def read(out: Path, study: str) -> Results:
    """Return the results that a study's folder holds; empty ones if it holds none.

    Raises:
        UserError: if the file is broken.
    """
    file = out / JSON
    if not file.exists():
        return Results(study)
    try:
        return TypeAdapter(Results).validate_json(file.read_bytes())
    except ValidationError as error:
        raise UserError(f"{file} cannot be read; remove it to score the cells anew") from error


def mean(scores: Sequence[Score]) -> float:
    """Return the mean over tasks."""
    return statistics.mean(score.main_score for score in scores)


def spread(values: Sequence[float]) -> str:
    """Return the mean, and the sample standard deviation if there are several values."""
    centre = f"{statistics.mean(values):.1f}"
    return centre if len(values) == 1 else f"{centre} ± {statistics.stdev(values):.1f}"
