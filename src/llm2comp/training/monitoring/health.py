"""Warnings about a stage while it trains: a spike, and an adapter that gets no gradient."""

import logging
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

from llm2comp.training.monitoring.run_log import RunLog

logger = logging.getLogger("llm2comp")

WINDOW, FEWEST = 50, 20
"""Steps that a value is compared with, and the fewest that a judgement needs."""
DEVIATIONS = 10
"""A spike is so many standard deviations above the median."""
NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
LOSS_RISE, GRADIENT_RISE = 3.0, 10.0
"""A spike is also this many times the largest value in the window: sources of different losses take
turns, and the norms of healthy gradients are heavy-tailed."""
LEAST = 0.1
"""And it is this much above it, because a loss near zero may rise a thousandfold and be good."""
DEAD_STEPS = 5
"""So many steps in a row without any gradient say that an adapter learns nothing."""


class SpikeFinder:
    """Finds values far above the recent ones.

    A value is a spike if it is above `median + 10 * 1.4826 * MAD` of the last 50 values (the Hampel
    identifier; Hampel, 1974; Davies and Gather, 1993), and several times their largest. Median and
    MAD, the median absolute deviation, hardly move if some of the 50 are spikes themselves.

    Args:
        rise: how many times the largest of the window a spike is.
    """

    def __init__(self, rise: float) -> None:
        self.rise = rise
        self.values: deque[float] = deque(maxlen=WINDOW)

    def is_spike(self, value: float) -> bool:
        """Return whether a value is a spike among those before it, and remember it."""
        limit = self._limit() if len(self.values) >= FEWEST else float("inf")
        self.values.append(value)
        return value > limit

    @property
    def middle(self) -> float:
        """The median of the window."""
        return median(self.values)

    def _limit(self) -> float:
        middle, largest = self.middle, max(self.values)
        mad = median(abs(value - middle) for value in self.values)
        return max(middle + DEVIATIONS * NORMAL * mad, self.rise * largest, largest + LEAST)


class HealthWatch:
    """Warns once of a spike of the loss or the gradient, and once of parts that are dead.

    Args:
        stage: name of the stage.
        log: where warnings are written.
    """

    def __init__(self, stage: str, log: RunLog) -> None:
        self.stage = stage
        self.run_log = log
        self.finders = {
            "loss": SpikeFinder(LOSS_RISE),
            "gradient's norm": SpikeFinder(GRADIENT_RISE),
        }
        self.warned_of_a_spike = False
        self.warned_of_a_dead_part = False
        self.zero_steps: dict[str, int] = {}

    def state(self) -> dict[str, Any]:
        """Return what was seen so far, for a checkpoint, as JSON takes it."""
        return {
            "values": {name: list(finder.values) for name, finder in self.finders.items()},
            "zero_steps": self.zero_steps,
            "warned_of_a_spike": self.warned_of_a_spike,
            "warned_of_a_dead_part": self.warned_of_a_dead_part,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned, so that a continued run warns as another does."""
        for name, finder in self.finders.items():
            finder.values.extend(state["values"][name])
        self.zero_steps = dict(state["zero_steps"])
        self.warned_of_a_spike = state["warned_of_a_spike"]
        self.warned_of_a_dead_part = state["warned_of_a_dead_part"]

    def observe(self, step: int, loss: float, gradients: Mapping[str, float]) -> None:
        """Look at one step.

        Args:
            step: number of the step, from 1.
            loss: mean loss of its batch.
            gradients: norm of the gradient of each part of the adapter, by the part's name.
        """
        norm = sum(value**2 for value in gradients.values()) ** 0.5
        for (name, finder), value in zip(self.finders.items(), (loss, norm), strict=True):
            if finder.is_spike(value) and not self.warned_of_a_spike:
                self.warned_of_a_spike = True
                warn(
                    self.run_log,
                    self.stage,
                    step,
                    f"the {name} is {value:.3g} and was about {finder.middle:.3g}: a spike. If "
                    f"the loss stays high, stop the run and lower {self.stage}.learning_rate, "
                    "warm up longer, or lower max_grad_norm",
                )
        for part, value in gradients.items():
            self.zero_steps[part] = 0 if value else self.zero_steps.get(part, 0) + 1
        dead = [part for part, steps in self.zero_steps.items() if steps >= DEAD_STEPS]
        if dead and not self.warned_of_a_dead_part:
            self.warned_of_a_dead_part = True
            warn(
                self.run_log,
                self.stage,
                step,
                f"no gradient has reached {' and '.join(dead)} for {DEAD_STEPS} steps, so nothing "
                "is learned there; check that batches have more than one row and different texts, "
                "what lora.target_modules names, and that the learning rate is not too high",
            )


def warn(log: RunLog, stage: str, step: int, text: str) -> None:
    """Warn of something at a step, on the console and in the log of the run.

    Args:
        log: the log of the run.
        stage: name of the stage.
        step: number of the step.
        text: the warning.
    """
    logger.warning("%s, step %d: %s", stage, step, text)
    log.write(stage=stage, step=step, warning=text)
