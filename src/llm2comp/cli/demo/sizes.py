"""Sizes of the demonstration: how many steps of each stage end in time on this machine."""

import math
import time
from collections.abc import Callable

from rich.console import Console

from llm2comp.errors import counted
from llm2comp.recipe import Recipe, Stage

BUDGET = 12 * 60.0
"""Seconds that the demonstration may take."""
STEP_COST = {"pretext": 1.0, "unsupervised": 2.0, "supervised": 2.1}
"""Time of a step of each stage, in steps of stage 1; measured with SmolLM2-135M on two cores."""
CHECK_COST = {"pretext": 14.0, "unsupervised": 2.0, "supervised": 3.0}
"""Time of a stage's measurements on held-out texts, in steps of stage 1."""
MARGIN = 0.97
"""Share of the time left that is planned with, because no estimate is exact."""
LEAST_SHARE = 0.5
"""Smallest share of a stage's steps. With half of them the scores rose for all of three seeds."""
REST_COST = 50.0 + 20.0 + 30.0
"""Time of what follows training, in steps of stage 1: six rows of scores, searches, report."""
STAGE_SECONDS = 12.0
"""Time that a stage takes beside its steps: it loads, merges and writes an encoder."""


class Sizes:
    """Chooses how many steps a stage trains, just before it begins.

    All costs are counted in steps of stage 1. One such step is timed before the first stage that
    is planned, and its time is estimated again from every stage that ends, because the machine may
    be busy or hot. Later stages shrink if time is short, but not below `LEAST_SHARE` of their
    steps.

    Args:
        recipe: the demonstration's; its numbers of steps are the largest ones.
        time_step: returns the seconds of one step of stage 1 on this machine.
        deadline: when the demonstration should end, by `clock`.
        console: where the choice is shown.
        clock: returns seconds.
    """

    def __init__(
        self,
        recipe: Recipe,
        time_step: Callable[[], float],
        deadline: float,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stages = recipe.stages
        self.time_step = time_step
        self.deadline = deadline
        self.console = console
        self.clock = clock
        self._step_seconds: float | None = None
        self._begun: tuple[float, float] | None = None

    def plan(self, stage: Stage) -> Stage:
        """Return the stage with as many steps as fit."""
        step_seconds = self._learn()
        now = self.clock()
        names = [one.stage for one in self.stages]
        stage = self.stages[names.index(stage.stage)]
        later = self.stages[names.index(stage.stage) :]
        rest = REST_COST + sum(CHECK_COST[one.stage] for one in later)
        left = MARGIN * (self.deadline - now) - len(later) * STAGE_SECONDS - rest * step_seconds
        wanted = sum(one.steps * STEP_COST[one.stage] for one in later) * step_seconds
        share = min(1.0, max(LEAST_SHARE, left / wanted))
        planned = _resized(stage, share)
        cost = planned.steps * STEP_COST[stage.stage] + CHECK_COST[stage.stage]
        self._begun = (now, cost)
        self.console.print(
            f"{stage.stage}: {planned.steps} of {counted(stage.steps, 'step')}, "
            f"about {cost * step_seconds / 60:.1f} minutes"
        )
        return planned

    def _learn(self) -> float:
        """Return the time of a step: timed at first, then estimated from the stage that ended."""
        if self._step_seconds is None:
            self._step_seconds = self.time_step()
            self.console.print(f"One step of stage 1 takes {self._step_seconds:.2f} s here.")
        if self._begun is not None:
            start, cost = self._begun
            self._step_seconds = max(self.clock() - start - STAGE_SECONDS, 1.0) / cost
        return self._step_seconds


def _resized(stage: Stage, share: float) -> Stage:
    """Return a stage with a share of its steps, of its warm-up and of what is between checks."""
    keys = ("steps", "warmup_steps", "eval_steps", "log_steps", "save_steps")
    # Rounded up, so that the last check is not followed by one of a single step more.
    return stage.model_copy(update={key: math.ceil(share * getattr(stage, key)) for key in keys})
