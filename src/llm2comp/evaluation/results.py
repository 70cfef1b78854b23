"""Tables of scores: sorted, compared with one model, by type of task, with the paper's scores."""

import functools
import itertools
import logging
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
from llm2comp.inference.vector_format import VectorFormat
from llm2comp.model.lineage import Lineage
from llm2comp.utils.tables import MISSING, Cells, show_cells

logger = logging.getLogger(__name__)

Rows = Mapping[str, Sequence[Score]]
"""Scores by name of the model, in the order of the rows."""
Extra = Mapping[str, Mapping[str, str]]
"""More columns: the cells by name of the model, by heading."""

MEAN = "mean"
PAPER = "{} (paper)"


@dataclass
class Leaderboard:
    """A table with one row per model and one column per task or type of task.

    Attributes:
        types: type of the tasks by column, in the order of the columns.
        points: scores in percent by model and column.
        results: the results behind the scores, by row and task.
    """

    types: dict[str, str]
    points: dict[str, dict[str, float]]
    results: dict[tuple[str, str], TaskResult]

    @classmethod
    def of(cls, results: Sequence[TaskResult], *, with_paper: bool = False) -> "Leaderboard":
        """Return a leaderboard with one column per task.

        If encoders with different lineages had one name after each other, each has a row: `NAME`,
        `NAME (2)` and so on, in the order of their first results. The log says so.

        Args:
            results: results of whole tasks only, or of quick versions only.
            with_paper: add the paper's scores, for the tasks that it has too.

        Raises:
            UserError: if there are no results.
        """
        if not results:
            raise UserError("no results here yet; `llm2comp evaluate MODEL` makes some")
        types = {result.score.task: result.type for result in results}
        known = [*TASKS, *suites.paper_tasks()]
        order = [*(name for name in known if name in types), *sorted(types.keys() - known)]
        points: dict[str, dict[str, float]] = {}
        by_row: dict[tuple[str, str], TaskResult] = {}
        for row, result in zip(_rows_of(results), results, strict=True):
            points.setdefault(row, {})[result.score.task] = result.score.main_score
            by_row[row, result.score.task] = result
        return cls(
            {name: types[name] for name in order},
            points | (paper_points() if with_paper else {}),
            by_row,
        )

    def by_type(self) -> "Leaderboard":
        """Return a leaderboard with one column per type of task: the mean over its tasks."""
        present = set(self.types.values())
        types = [
            *(name for name in suites.TYPES if name in present),
            *sorted(present - {*suites.TYPES}),
        ]
        means = {model: self._means(points) for model, points in self.points.items()}
        return Leaderboard({name: name for name in types}, means, {})

    def cells(self, *, sort: str = MEAN, against: str | None = None) -> Cells:
        """Return one row per model, the best first, with one cell per column and their mean.

        Args:
            sort: the column to sort by.
            against: a model. The cells of the others also show the difference to it.

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
        """Return the differences to one model with their 95 % intervals, one row per model.

        There is no interval for a task whose score is not computed from items, or from a single
        one, see `llm2comp.evaluation.intervals.explains`.

        Args:
            against: the model to compare with.

        Raises:
            UserError: if there is no such model, or two results are over different items.
        """
        models = list(dict.fromkeys(model for model, _ in self.results))
        _require(against, models, "model")
        body = []
        for model in models:
            if model != against:
                cells = [self._difference(model, against, task) for task in self.types]
                body.append([f"{model} - {against}", *cells])
        return [["difference", *self.types], *body]

    def _difference(self, model: str, against: str, task: str) -> str:
        result, reference = self.results.get((model, task)), self.results.get((against, task))
        if result is None or reference is None:
            return MISSING
        gap = f"{result.score.main_score - reference.score.main_score:+.1f}"
        both = result, reference
        # Older versions also stored items that a score is not computed from.
        if not all(intervals.explains(one.items, one.score.main_score) for one in both):
            return gap
        low, high = intervals.difference(result.items, reference.items)
        return f"{gap} [{low:+.1f}, {high:+.1f}]"

    def _row(self, points: dict[str, float]) -> dict[str, float]:
        """Return the scores by column, and their mean if none is missing."""
        row = {task: points[task] for task in self.types if task in points}
        if len(row) == len(self.types):
            row[MEAN] = statistics.mean(row.values())
        return row

    def _means(self, points: dict[str, float]) -> dict[str, float]:
        """Return the mean over the tasks of each type, except of types with a missing task."""
        means = {}
        for name in set(self.types.values()):
            tasks = [task for task, kind in self.types.items() if kind == name]
            if all(task in points for task in tasks):
                means[name] = statistics.mean(points[task] for task in tasks)
        return means


@functools.cache
def paper_points() -> dict[str, dict[str, float]]:
    """Return the scores of Llama-2-7b-chat in the paper, in percent, by row and task."""
    text = resources.files(__package__).joinpath("paper_scores.yaml").read_text(encoding="utf-8")
    rows = TypeAdapter(dict[str, list[float]]).validate_python(yaml.safe_load(text))
    tasks = suites.paper_tasks()
    return {PAPER.format(name): dict(zip(tasks, row, strict=True)) for name, row in rows.items()}


def _rows_of(results: Sequence[TaskResult]) -> list[str]:
    """Return the name of the row of each result, and log which names several encoders had."""
    lineages: dict[str, list[Lineage]] = {}
    places = []
    for result in results:
        of_name = lineages.setdefault(result.model, [])
        # One that is not known, as that of a hub id may be, is taken for the first.
        place = 0 if result.lineage is None else _place(result.lineage, of_name)
        if place == len(of_name) and result.lineage is not None:
            of_name.append(result.lineage)
        places.append(place)
    rows: dict[str, list[str]] = {}
    for name, of_name in lineages.items():
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        free = (row for row in numbered if row not in lineages)
        rows[name] = [name, *itertools.islice(free, max(len(of_name) - 1, 0))]
    found = [rows[one.model][place] for one, place in zip(results, places, strict=True)]
    tasks: dict[str, list[str]] = {}
    for row, one in zip(found, results, strict=True):
        tasks.setdefault(row, []).append(one.score.task)
    for name, own in rows.items():
        if len(own) > 1:
            logger.warning(
                "%s has scores of %d encoders that had this name after each other, each in a row "
                "of its own (%s); evaluate it again to replace the scores of those before",
                name,
                len(own),
                "; ".join(f"{row}: {', '.join(tasks[row])}" for row in own),
            )
    return found


def _place(lineage: Lineage, known: Sequence[Lineage]) -> int:
    """Return the place of the encoder with a lineage among others, or their number.

    The embeddings that a lineage holds differ by rounding if an encoder is built on two machines.
    """
    for place, one in enumerate(known):
        first, second = (each.model_copy(update={"reference": None}) for each in (one, lineage))
        alike = one.reference == lineage.reference or (
            one.reference is not None
            and lineage.reference is not None
            and one.reference.is_near(lineage.reference)
        )
        if first == second and alike:
            return place
    return len(known)


def _require(name: str, known: Sequence[str] | dict[str, dict[str, float]], what: str) -> None:
    if name not in known:
        raise UserError(f"no {what} {name!r} in the results; there are {', '.join(known)}")


def show(rows: Rows, extra: Extra | None = None, console: Console | None = None) -> None:
    """Print the table of `score_cells`."""
    show_cells(score_cells(rows, extra), console)


def size_columns(rows: Rows) -> Extra:
    """Return the columns with the bytes of a vector and the share of the largest one's mean score.

    Args:
        rows: the scores of `llm2comp.evaluation.sizes.evaluate_sizes`, of one encoder or several.
    """
    largest: dict[str, float] = {}
    bytes_of, share_of = {}, {}
    for name, scores in rows.items():
        size = VectorFormat(scores[0].dim, scores[0].precision).bytes
        mean = statistics.mean(score.main_score for score in scores)
        whole = largest.setdefault(name.rpartition(", ")[0], mean)  # the largest comes first
        bytes_of[name] = f"{size:,}"
        share_of[name] = f"{100 * mean / whole:.1f} %" if whole > 0 else MISSING
    return {"bytes": bytes_of, "of whole": share_of}


def score_cells(rows: Rows, extra: Extra | None = None) -> Cells:
    """Return one row per model: a cell per task, their mean, then the extra columns."""
    tasks = list(dict.fromkeys(score.task for scores in rows.values() for score in scores))
    extra = extra or {}
    table = [["model", *tasks, "mean", *extra]]
    for name, scores in rows.items():
        points = {score.task: score.main_score for score in scores}
        table.append(
            [
                name,
                *(f"{points[task]:.1f}" if task in points else MISSING for task in tasks),
                # No mean over fewer tasks, because it does not compare with the other rows.
                f"{sum(points.values()) / len(tasks):.1f}"
                if len(points) == len(tasks)
                else MISSING,
                *(column.get(name, MISSING) for column in extra.values()),
            ]
        )
    return table
