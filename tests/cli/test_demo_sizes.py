"""The demonstration's sizes fit the time that is left, and shrink where a machine is slow."""

import math

import pytest
from rich.console import Console

from llm2comp.cli.demo.sizes import (
    BUDGET,
    CHECK_COST,
    LEAST_SHARE,
    REST_COST,
    STAGE_SECONDS,
    STEP_COST,
    Sizes,
)
from llm2comp.recipe import Recipe, load_recipe, recipe_path


class Machine:
    """A machine whose steps of stage 1 take `seconds`; it trains by moving its clock."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.now = 100.0
        self.timed = 0

    def time_step(self) -> float:
        self.timed += 1
        self.now += 4 * self.seconds
        return self.seconds

    def train(self, recipe: Recipe, slower: dict[str, float] | None = None) -> dict[str, int]:
        """Return the steps of each stage; `slower` multiplies the time from a stage on."""
        deadline = self.now + BUDGET
        sizes = Sizes(recipe, self.time_step, deadline, Console(quiet=True), clock=lambda: self.now)
        steps = {}
        for stage in recipe.stages:
            self.seconds *= (slower or {}).get(stage.stage, 1.0)
            planned = sizes.plan(stage)
            steps[stage.stage] = planned.steps
            cost = planned.steps * STEP_COST[stage.stage] + CHECK_COST[stage.stage]
            self.now += STAGE_SECONDS + cost * self.seconds
        self.now += REST_COST * self.seconds
        return steps


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(recipe_path("demo"))


def whole(recipe: Recipe) -> dict[str, int]:
    return {stage.stage: stage.steps for stage in recipe.stages}


def test_a_fast_machine_trains_all_steps_in_time(recipe: Recipe) -> None:
    machine = Machine(0.5)
    assert machine.train(recipe) == whole(recipe)
    assert machine.now <= 100 + BUDGET
    assert machine.timed == 1


@pytest.mark.parametrize("seconds", [1.3, 1.6, 1.9])
def test_a_slower_machine_trains_fewer_steps_and_ends_in_time(
    recipe: Recipe, seconds: float
) -> None:
    machine = Machine(seconds)
    steps = machine.train(recipe)
    assert all(LEAST_SHARE * n <= steps[name] < n for name, n in whole(recipe).items())
    assert machine.now <= 100 + BUDGET


def test_no_machine_trains_less_than_the_least(recipe: Recipe) -> None:
    least = {name: math.ceil(LEAST_SHARE * n) for name, n in whole(recipe).items()}
    assert Machine(60.0).train(recipe) == least


def test_later_stages_shrink_when_the_machine_slows_down(recipe: Recipe) -> None:
    even = Machine(0.9).train(recipe)
    slowed = Machine(0.9).train(recipe, slower={"unsupervised": 2.0})
    assert slowed["pretext"] == even["pretext"]
    assert slowed["supervised"] < even["supervised"]


def test_what_hangs_on_the_number_of_steps_shrinks_with_it(recipe: Recipe) -> None:
    sizes = Sizes(recipe, lambda: 60.0, 0.0, Console(quiet=True), clock=lambda: 0.0)
    first = recipe.stages[0]
    planned = sizes.plan(first)
    assert planned.steps == first.steps * LEAST_SHARE
    assert planned.warmup_steps == first.warmup_steps * LEAST_SHARE
    assert planned.learning_rate == first.learning_rate


def test_every_stage_has_a_cost(recipe: Recipe) -> None:
    assert STEP_COST.keys() == CHECK_COST.keys() == whole(recipe).keys()
