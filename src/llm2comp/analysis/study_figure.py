"""The figure of a study: scores with error bars over seeds, as bars or as lines over a number."""

import math
import statistics
from collections.abc import Collection, Mapping
from pathlib import Path

from llm2comp.analysis import figures
from llm2comp.training.study.plan import Study, trial
from llm2comp.training.study.results import Results, Row

UNIT = "score x 100"


def draw(results: Results, study: Study, stem: Path) -> list[Path]:
    """Draw the scores of a study, with one panel per task after a panel of their mean.

    If the study has a `plot`, its settings are points of lines. Otherwise they are bars, beside
    those of the baselines.

    Args:
        results: results with at least one scored trial.
        study: the study that they are of.
        stem: path of the figure without `.png` and `.svg`.

    Returns:
        The two files.

    Raises:
        UserError: if matplotlib is not installed.
    """
    panels = {task: [task] for task in results.tasks}
    if len(panels) > 1:
        panels = {f"mean of {len(panels)} tasks": list(panels), **panels}
    rows = results.rows()
    if study.plot is None:
        bars = {title: _bars(rows, tasks) for title, tasks in panels.items()}
        return figures.bars(bars, stem, x=UNIT)
    trained = [row for row in rows if row.stage]
    points = {
        one.setting: study.plot.point(trial(study, one.setting, one.seed, one.value).recipe)
        for one in results.trials.values()
        if one.scores
    }
    lines = {title: _lines(trained, points, tasks) for title, tasks in panels.items()}
    return figures.lines(lines, stem, x=study.plot.label or study.plot.x, y=UNIT)


def _lines(
    rows: list[Row], points: Mapping[str, tuple[str, float]], tasks: Collection[str]
) -> dict[str, list[tuple[float, float, float]]]:
    """Return, for each line of a panel, its points from left to right.

    Args:
        rows: scores of the settings. If they are of several stages, each stage has its own lines.
        points: by setting, the name of its line and its place on the x axis.
        tasks: names of the tasks that are averaged.

    Returns:
        By the name of the line: place on the x axis, mean over runs, deviation over runs.
    """
    several = len({row.stage for row in rows}) > 1
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        line, x = points[row.setting]
        label = ", ".join(filter(None, [line, row.stage if several else ""]))
        lines.setdefault(label, []).append((x, *_summary(row, tasks)))
    return {label: sorted(line) for label, line in lines.items()}


def _bars(rows: list[Row], tasks: Collection[str]) -> list[figures.Bar]:
    return [
        figures.Bar(row.name, row.stage or "training-free", *_summary(row, tasks)) for row in rows
    ]


def _summary(row: Row, tasks: Collection[str]) -> tuple[float, float]:
    """Return the mean over runs of each run's mean over tasks, and its sample deviation.

    Runs that lack a task are left out. Both are NaN if none is left, and the deviation of a single
    run is NaN too.
    """
    points = [{score.task: score.main_score for score in run} for run in row.runs]
    means = [
        statistics.mean(run[task] for task in tasks)
        for run in points
        if all(task in run for task in tasks)
    ]
    return (
        statistics.mean(means) if means else math.nan,
        statistics.stdev(means) if len(means) > 1 else math.nan,
    )
