"""The difference between each setting of a study and one of them, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from llm2comp.evaluation import intervals
from llm2comp.evaluation.store import Score
from llm2comp.utils.tables import MISSING, Cells


class Run(NamedTuple):
    """An encoder of a study: a setting with a seed after a stage, by the stage's label."""

    setting: str
    seed: int
    stage: str


@dataclass(frozen=True)
class Gap:
    """A difference of two scores in percent, with its 95 % interval if there is one."""

    points: float
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.points:+.1f}"
        low, high = self.interval
        return f"{self.points:+.1f} [{low:+.1f}, {high:+.1f}]"


@dataclass(frozen=True)
class Difference:
    """The scores of a setting minus those of the reference, after one stage.

    Attributes:
        setting: name of the setting.
        stage: label of the stage.
        seeds: that both have. Differences are means over them.
        tasks: the difference on each task.
        mean: the mean over the tasks with an interval; None if there are none.
    """

    setting: str
    stage: str
    seeds: list[int]
    tasks: dict[str, Gap]
    mean: Gap | None


@dataclass(frozen=True)
class Comparison:
    """All settings of a study against one of them.

    Attributes:
        reference: name of that setting.
        differences: one for each other setting and stage, if they have a seed in common.
    """

    reference: str
    differences: list[Difference]

    def table(self) -> Cells:
        """Return one row for each difference and one column for each task."""
        tasks = list(dict.fromkeys(task for one in self.differences for task in one.tasks))
        several = len({one.stage for one in self.differences}) > 1
        body = [
            [
                f"{one.setting} - {self.reference}" + (f", {one.stage}" if several else ""),
                str(len(one.seeds)),
                *(str(one.tasks.get(task, MISSING)) for task in tasks),
                str(one.mean or MISSING),
            ]
            for one in self.differences
        ]
        return [["difference", "seeds", *tasks, "mean"], *body]

    def notes(self) -> str:
        """Say how to read the table."""
        gaps = [(task, gap) for one in self.differences for task, gap in one.tasks.items()]
        without = list(dict.fromkeys(task for task, gap in gaps if gap.interval is None))
        text = (
            f"Differences are means over the seeds that both have. In brackets are "
            f"{intervals.CONFIDENCE:.0%} intervals of a paired bootstrap over the items of each "
            f"task ({intervals.RESAMPLES:,} resamples). They hold for these seeds and say nothing "
            "of others."
        )
        if without:
            text += (
                f" Without an interval, and not in the mean: {', '.join(without)}. Their scores "
                "are not computed from items, or the items of a trial were not kept."
            )
        some = [
            task
            for task in dict.fromkeys(task for task, _ in gaps)
            if task not in without and any(task not in one.tasks for one in self.differences)
        ]
        if some:
            text += f" Not in the mean, because not all settings have it: {', '.join(some)}."
        return text


def compare(
    scores: Mapping[Run, Sequence[Score]],
    items: Mapping[tuple[Run, str], Mapping[str, Any]],
    reference: str,
) -> Comparison:
    """Compare every setting with a reference, after each stage.

    A task's items are resampled for all runs alike. The statistic of a resample is the mean of the
    differences over the seeds that both settings have. The mean over tasks resamples each task
    independently of the others. It has the tasks of which all runs have items, so that all rows
    have the same. A difference has the tasks that both settings have.

    Args:
        scores: scores of each run.
        items: by run and task, what `llm2comp.evaluation.intervals.items` returned.
        reference: name of a setting.

    Raises:
        UserError: if two runs were scored on different items of a task.
    """
    points = {run: {score.task: score.main_score for score in row} for run, row in scores.items()}
    runs = list(points)
    tasks = list(dict.fromkeys(task for run in runs for task in points[run]))
    resampled: dict[str, dict[Run, intervals.Floats]] = {}
    for i, task in enumerate(tasks):
        having = [run for run in runs if task in points[run]]
        of_task = [items.get((run, task), {}) for run in having]
        if all(of_task):
            samples_of_runs = intervals.resampled(of_task, i)
            resampled[task] = dict(zip(having, samples_of_runs, strict=True))
    differences = []
    for setting in dict.fromkeys(run.setting for run in runs if run.setting != reference):
        for stage in dict.fromkeys(run.stage for run in runs):
            seeds = [
                run.seed
                for run in runs
                if run == (reference, run.seed, stage) and (setting, run.seed, stage) in points
            ]
            if not seeds:
                continue
            pairs = [(Run(setting, seed, stage), Run(reference, seed, stage)) for seed in seeds]
            gaps = {
                task: float(np.mean([points[a][task] - points[b][task] for a, b in pairs]))
                for task in points[pairs[0][0]]
                if all(task in points[run] for pair in pairs for run in pair)
            }
            samples = {
                task: np.mean([of_run[a] - of_run[b] for a, b in pairs], axis=0)
                for task, of_run in resampled.items()
                if task in gaps
            }
            common = [task for task in samples if len(resampled[task]) == len(runs)]
            mean = None
            if common:
                mean = Gap(
                    float(np.mean([gaps[task] for task in common])),
                    intervals.interval(np.mean([samples[task] for task in common], axis=0)),
                )
            by_task = {
                task: Gap(gap, intervals.interval(samples[task]) if task in samples else None)
                for task, gap in gaps.items()
            }
            differences.append(Difference(setting, stage, seeds, by_task, mean))
    return Comparison(reference, differences)
