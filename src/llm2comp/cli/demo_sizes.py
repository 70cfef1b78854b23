"""Sizes of the demonstration: how many steps of each stage end in time on this machine."""

import time
from collections.abc import Callable

from rich.console import Console

from llm2comp.recipe import Pretext, Recipe, Stage

BUDGET = 12 * 60.0
"""Seconds that the demonstration may take."""
STEP_COST = {"pretext": 1.0, "unsupervised": 2.3, "supervised": 2.6}
"""Time of a step of each stage, in steps of stage 1; measured with SmolLM2-135M on two cores."""
LEAST_STEPS = {"pretext": 100, "unsupervised": 20, "supervised": 40}
"""Fewer steps of a stage may not raise the scores."""
REST_COST = 150.0
"""Time of what comes after training (scores, searches, report), in steps of stage 1."""
STAGE_SECONDS = 15.0
"""Time that a stage takes beside its steps: it loads, merges and writes an encoder."""


class Sizes:
    """Chooses how many steps a stage trains, just before it begins.

    All costs are counted in steps of stage 1. The time of one such step is measured before the
    first stage, and estimated again from every stage that ends. Later stages shrink if time is
    short, but not below ``LEAST_STEPS``.

    Args:
        recipe: the demonstration's; its numbers of steps are the largest ones.
        step_seconds: time of one step of stage 1, as measured before training.
        deadline: when the demonstration should end, by ``clock``.
        console: where the choice is shown.
        clock: returns seconds.
    """

    def __init__(
        self,
        recipe: Recipe,
        step_seconds: float,
        deadline: float,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stages = recipe.stages
        self.step_seconds = step_seconds
        self.deadline = deadline
        self.console = console
        self.clock = clock
        self._begun: tuple[float, float] | None = None

    def plan(self, stage: Stage) -> Stage:
        """Return the stage with as many steps as fit."""
        now = self.clock()
        self._learn(now)
        later = self.stages[[one.stage for one in self.stages].index(stage.stage) :]
        left = self.deadline - now - len(later) * STAGE_SECONDS - REST_COST * self.step_seconds
        wanted = sum(one.steps * STEP_COST[one.stage] for one in later) * self.step_seconds
        share = min(1.0, max(0.0, left / wanted))
        steps = min(stage.steps, max(LEAST_STEPS[stage.stage], int(share * stage.steps)))
        self._begun = (now, steps * STEP_COST[stage.stage])
        seconds = steps * STEP_COST[stage.stage] * self.step_seconds
        self.console.print(
            f"{stage.stage}: {steps} steps, about {seconds / 60:.1f} minutes; "
            f"{max(0.0, self.deadline - now) / 60:.1f} minutes are left"
        )
        return _resized(stage, steps)

    def _learn(self, now: float) -> None:
        """Estimate the time of a step from the stage that has just ended."""
        if self._begun is not None:
            begun, cost = self._begun
            self.step_seconds = max(now - begun - STAGE_SECONDS, 1.0) / cost


def _resized(stage: Stage, steps: int) -> Stage:
    """Return a stage with another number of steps, and a warm-up of the same share."""
    share = steps / stage.steps
    changes: dict[str, int] = {
        "steps": steps,
        "warmup_steps": max(1, round(stage.warmup_steps * share)),
    }
    if isinstance(stage, Pretext):
        changes["eval_steps"] = max(1, round(stage.eval_steps * share))
    return stage.model_copy(update=changes)
