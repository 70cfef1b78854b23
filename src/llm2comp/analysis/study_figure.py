"""The figure of a study: scores with error bars over seeds, as bars, or as lines over a number."""

import math
import re
import statistics
from collections.abc import Collection
from pathlib import Path

from llm2comp.analysis import figures
from llm2comp.training.study.results import Results, Row

_NUMBER = re.compile(r"((?P<line>.+), )?((?P<what>.+) = )?(?P<number>\d[\d,]*)")
"""A setting over a number: ``k = 8``, or, on a line of its own, ``CTKD, 1,000``."""

UNIT = "score x 100"


def draw(found: Results, stem: Path) -> list[Path]:
    """Draw a study's scores, a panel a task after one of their mean.

    Settings that are numbers of something, as in ``k = 8``, are points of lines
    over it; others are bars, beside those of the baselines.

    Args:
        found: with at least one scored cell.
        stem: path of the figure without ``.png`` and ``.svg``.

    Raises:
        UserError: if matplotlib is not installed.
    """
    panels = {task: [task] for task in found.tasks}
    if len(panels) > 1:
        panels = {f"mean of {len(panels)} tasks": list(panels), **panels}
    trained = [row for row in found.rows() if row.stage]
    if all(_NUMBER.fullmatch(row.setting) for row in trained):
        lines = {title: _lines(trained, tasks) for title, tasks in panels.items()}
        return figures.lines(lines, stem, x=_what(found), y=UNIT)
    bars = {title: _bars(found.rows(), tasks) for title, tasks in panels.items()}
    return figures.bars(bars, stem, x=UNIT)


def _what(found: Results) -> str:
    """Return what the settings' numbers are of: as they say, or passages if that many were seen."""
    scored = [(_read(one.setting), one.passages) for one in found.trials.values() if one.scores]
    if all(matched["what"] is None and _number(matched) == seen for matched, seen in scored):
        return "passages"
    return scored[0][0]["what"] or ""


def _lines(rows: list[Row], tasks: Collection[str]) -> dict[str, list[tuple[float, float, float]]]:
    """Return points by their line, and by the stage if there are several."""
    several = len({row.stage for row in rows}) > 1
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        matched = _read(row.setting)
        label = ", ".join(filter(None, [matched["line"], row.stage if several else ""]))
        lines.setdefault(label, []).append((_number(matched), *_summary(row, tasks)))
    return {label: sorted(points) for label, points in lines.items()}


def _read(setting: str) -> re.Match[str]:
    matched = _NUMBER.fullmatch(setting)
    assert matched is not None
    return matched


def _number(matched: re.Match[str]) -> int:
    return int(matched["number"].replace(",", ""))


def _bars(rows: list[Row], tasks: Collection[str]) -> list[figures.Bar]:
    return [
        figures.Bar(row.name, row.stage or "training-free", *_summary(row, tasks)) for row in rows
    ]


def _summary(row: Row, tasks: Collection[str]) -> tuple[float, float]:
    """Return the mean over runs of their means over tasks, and its deviation, NaN for one run."""
    means = [
        statistics.mean(score.main_score for score in run if score.task in tasks)
        for run in row.runs
    ]
    return statistics.mean(means), statistics.stdev(means) if len(means) > 1 else math.nan
