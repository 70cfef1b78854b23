"""What was scored, as tables: sorted, against a row, by type of task, beside the paper's rows."""

import functools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import yaml
from pydantic import TypeAdapter
from rich.console import Console

from llm2comp.errors import UserError
from llm2comp.evaluation import intervals, suites
from llm2comp.evaluation.store import Score, TaskResult
from llm2comp.evaluation.tasks.registry import TASKS
from llm2comp.utils.tables import MISSING, Cells, show_cells

MEAN = "mean"
PAPER = "{} (paper)"


@dataclass
class Leaderboard:
    """Scores of models by column.

    Attributes:
        types: a column, a task as a rule: its type, in the order of the table.
        points: scores by model and column.
        found: the results behind them, by model and task.
    """

    types: dict[str, str]
    points: dict[str, dict[str, float]]
    found: dict[tuple[str, str], TaskResult]

    @classmethod
    def of(cls, found: Sequence[TaskResult], *, with_paper: bool = False) -> "Leaderboard":
        """Return a board with a column a task.

        Args:
            found: results, all quick or all whole.
            with_paper: add the paper's rows, on the tasks that are its own.

        Raises:
            UserError: if nothing was found.
        """
        if not found:
            raise UserError("no results here yet; `llm2comp evaluate MODEL` makes some")
        types = {one.score.task: one.type for one in found}
        known = [*TASKS, *suites.paper_tasks()]
        order = [*(name for name in known if name in types), *sorted(types.keys() - known)]
        points: dict[str, dict[str, float]] = {}
        for one in found:
            points.setdefault(one.model, {})[one.score.task] = one.score.main_score
        return cls(
            {name: types[name] for name in order},
            points | (paper_points() if with_paper else {}),
            {(one.model, one.score.task): one for one in found},
        )

    def by_type(self) -> "Leaderboard":
        """Return a board with a column a type of task: the mean over its tasks."""
        found = set(self.types.values())
        types = [
            *(name for name in suites.TYPES if name in found),
            *sorted(found - {*suites.TYPES}),
        ]
        means = {model: self._means(points) for model, points in self.points.items()}
        return Leaderboard({name: name for name in types}, means, {})

    def cells(self, *, sort: str = MEAN, against: str | None = None) -> Cells:
        """Return a row a model, a column a task, then their mean; best first.

        Args:
            sort: the column that orders the rows.
            against: a model; the others' cells also say how far they are from it.

        Raises:
            UserError: if there is no such column or model.
        """
        columns = [*self.types, MEAN]
        _require(sort, columns, "column")
        if against is not None:
            _require(against, self.points, "model")
        rows = {model: self._row(points) for model, points in self.points.items()}
        order = sorted(rows, key=lambda model: rows[model].get(sort, float("-inf")), reverse=True)
        base = rows[against] if against is not None else {}
        body = []
        for model in order:
            row = [model]
            for column in columns:
                text = f"{rows[model][column]:.1f}" if column in rows[model] else MISSING
                if model != against and column in rows[model] and column in base:
                    text += f" ({rows[model][column] - base[column]:+.1f})"
                row.append(text)
            body.append(row)
        return [["model", *columns], *body]

    def interval_cells(self, against: str) -> Cells:
        """Return how far each model is from one, with the 95 % interval of :mod:`.intervals`.

        Tasks whose metric is not one over items have no interval.

        Raises:
            UserError: if there is no such model, or two results are over different items.
        """
        models = list(dict.fromkeys(model for model, _ in self.found))
        _require(against, models, "model")
        body = []
        for model in models:
            if model != against:
                cells = [self._difference(model, against, task) for task in self.types]
                body.append([f"{model} - {against}", *cells])
        return [["difference", *self.types], *body]

    def _difference(self, model: str, against: str, task: str) -> str:
        one, other = self.found.get((model, task)), self.found.get((against, task))
        if one is None or other is None:
            return MISSING
        gap = f"{one.score.main_score - other.score.main_score:+.1f}"
        if not (one.items and other.items):
            return gap
        low, high = intervals.difference(one.items, other.items)
        return f"{gap} [{low:+.1f}, {high:+.1f}]"

    def _row(self, points: dict[str, float]) -> dict[str, float]:
        """Return the scores of the board's tasks, and their mean if none is missing."""
        row = {task: points[task] for task in self.types if task in points}
        if len(row) == len(self.types):
            row[MEAN] = statistics.mean(row.values())
        return row

    def _means(self, points: dict[str, float]) -> dict[str, float]:
        """Return the mean of each type of which no task is missing."""
        means = {}
        for name in set(self.types.values()):
            tasks = [task for task, kind in self.types.items() if kind == name]
            if all(task in points for task in tasks):
                means[name] = statistics.mean(points[task] for task in tasks)
        return means


@functools.cache
def paper_points() -> dict[str, dict[str, float]]:
    """Return the paper's published scores by row and task (Llama-2-7b-chat)."""
    text = resources.files(__package__).joinpath("paper_scores.yaml").read_text(encoding="utf-8")
    rows = TypeAdapter(dict[str, list[float]]).validate_python(yaml.safe_load(text))
    tasks = suites.paper_tasks()
    return {PAPER.format(name): dict(zip(tasks, row, strict=True)) for name, row in rows.items()}


def _require(name: str, known: Sequence[str] | dict[str, dict[str, float]], what: str) -> None:
    if name not in known:
        raise UserError(f"no {what} {name!r} in the results; there are {', '.join(known)}")


Rows = Mapping[str, Sequence[Score]]


"""Scores by the model's name, in the order of the rows."""


Extra = Mapping[str, Mapping[str, str]]


"""Further columns: their heading, then the cell by the model's name."""


def show(rows: Rows, extra: Extra | None = None, console: Console | None = None) -> None:
    """Print the table: a row a model, a column a task, their mean, then further columns."""
    show_cells(score_cells(rows, extra), console)


def score_cells(rows: Rows, extra: Extra | None = None) -> Cells:
    """Return a row a model, a column a task, their mean, then further columns."""
    tasks = list(dict.fromkeys(score.task for scores in rows.values() for score in scores))
    extra = extra or {}
    table = [["model", *tasks, "mean", *extra]]
    for name, scores in rows.items():
        points = {score.task: score.main_score for score in scores}
        table.append(
            [
                name,
                *(f"{points[task]:.1f}" if task in points else MISSING for task in tasks),
                # A mean over fewer tasks would not compare with its neighbours.
                f"{sum(points.values()) / len(tasks):.1f}"
                if len(points) == len(tasks)
                else MISSING,
                *(column.get(name, MISSING) for column in extra.values()),
            ]
        )
    return table
