"""The figure of a study: scores with error bars over seeds, as bars, or as lines over a number."""

import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from llm2comp.analysis import figures
from llm2comp.evaluation.store import Score
from llm2comp.study.results import Results

_NUMBER = re.compile(r"^(.*?)[\s,=]*([\d,]+)$")

Points = list[tuple[float, float, float]]
"""A number, the mean over runs and their deviation."""


def draw(found: Results, stem: Path) -> list[Path]:
    """Draw a study's means over tasks; settings that end in a number are lines over it.

    Args:
        found: with at least one scored cell.
        stem: path of the figure without ``.png`` and ``.svg``.

    Raises:
        UserError: if matplotlib is not installed.
    """
    names = {one.setting for one in found.cells.values() if one.scores}
    if all(_NUMBER.match(name) for name in names):
        return figures.lines(_lines(found), stem, y="mean over tasks")
    bars = [(name, *_summary(runs)) for name, runs in found.rows()]
    return figures.bars(bars, stem, x="mean over tasks")


def _lines(found: Results) -> dict[str, Points]:
    """Return points by what stands before the number, or after it the stage."""
    lines: dict[str, Points] = {}
    for name, runs in found.rows():
        if name in found.baselines:
            continue
        setting, _, stage = name.partition(", after ")
        matched = _NUMBER.match(setting)
        assert matched is not None
        label = ", after ".join(filter(None, [matched[1].strip(), stage]))
        number = float(matched[2].replace(",", ""))
        lines.setdefault(label, []).append((number, *_summary(runs)))
    return {label: sorted(points) for label, points in lines.items()}


def _summary(runs: Sequence[Sequence[Score]]) -> tuple[float, float]:
    means = [statistics.mean(score.main_score for score in run) for run in runs]
    return statistics.mean(means), statistics.stdev(means) if len(means) > 1 else 0.0
