"""A plan decides the size of a stage just before it starts, and a resumed run keeps it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from llm2comp.errors import UserError
from llm2comp.recipe import Recipe, Stage, load_recipe
from llm2comp.training import pipeline, trainer

WORK = ".2-unsupervised.work"


class Stopped(BaseException):
    """As if the process was killed."""


class Plan:
    """Returns each stage with other sizes, and keeps what it was asked."""

    def __init__(self, steps: dict[str, int]) -> None:
        self.steps = steps
        self.asked: list[tuple[str, int]] = []

    def __call__(self, stage: Stage) -> Stage:
        self.asked.append((stage.stage, stage.steps))
        return stage.model_copy(update={"steps": self.steps[stage.stage], "save_steps": 2})


SHORT = {"pretext": 6, "unsupervised": 5, "supervised": 3}
OTHER = {"pretext": 7, "unsupervised": 7, "supervised": 3}
GIVEN = [("pretext", 20), ("unsupervised", 12), ("supervised", 12)]


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe)


def train(recipe: Recipe, out: Path, plan: Callable[[Stage], Stage] | None = None) -> Path:
    return pipeline.train(recipe, out, Console(quiet=True), plan)


def steps(out: Path) -> dict[str, int]:
    stages = yaml.safe_load((out / "recipe.yaml").read_text())["stages"]
    return {stage["stage"]: stage["steps"] for stage in stages}


def stop_in_stage_2(
    recipe: Recipe, out: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Stop a run as soon as stage 2 has made this many steps."""

    class Stop(trainer.RunProgress):
        def on_step_begin(self, args, state, control, **_):  # noqa: ANN001, ANN003, ANN202
            if self.label == "unsupervised" and state.global_step == after:
                raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "RunProgress", Stop)
        with pytest.raises(Stopped):
            train(recipe, out, plan)


def weights(out: Path) -> list[bytes]:
    folders = ("1-pretext", "2-unsupervised", "3-supervised", "model")
    return [(out / folder / "model.safetensors").read_bytes() for folder in folders]


def test_a_stopped_run_resumes_with_its_sizes_to_the_same_bits(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    plan = Plan(SHORT)
    train(recipe, whole, plan)
    assert plan.asked == GIVEN
    assert steps(whole) == SHORT

    stop_in_stage_2(recipe, stopped, Plan(SHORT), monkeypatch, after=3)
    assert trainer.last_checkpoint(stopped / WORK) is not None
    assert steps(stopped) == SHORT | {"supervised": 12}  # stage 3 is not planned yet
    plan = Plan(OTHER)  # it would choose other sizes now for the stages that have started
    train(recipe, stopped, plan)
    assert plan.asked == GIVEN[2:]
    assert steps(stopped) == SHORT
    assert weights(stopped) == weights(whole)

    train(recipe, stopped, plan)  # all is done, so nothing is asked
    assert plan.asked == GIVEN[2:]


def test_a_stage_without_a_checkpoint_is_planned_again_from_the_recipe(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_stage_2(recipe, tmp_path, Plan(SHORT), monkeypatch, after=1)
    assert steps(tmp_path)["unsupervised"] == 5
    plan = Plan(OTHER)
    train(recipe, tmp_path, plan)
    assert plan.asked == GIVEN[1:]  # the given sizes, not those of the plan before
    assert steps(tmp_path) == OTHER | {"pretext": 6}


def test_the_recipe_that_was_written_runs_without_a_plan_and_another_is_refused(
    recipe: Recipe, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    alone = recipe.model_copy(update={"stages": recipe.stages[:1]})
    train(alone, out, Plan(SHORT))
    train(load_recipe(out / "recipe.yaml"), out)
    with pytest.raises(UserError, match="another recipe"):
        train(alone, out)  # its sizes are not those of the run
    for other in ({"seed": 1}, {"stages": recipe.stages[:2]}):
        with pytest.raises(UserError, match="another recipe"):
            train(alone.model_copy(update=other), out, Plan(SHORT))
    colder = alone.stages[0].model_copy(update={"learning_rate": 1e-3})
    with pytest.raises(UserError, match="another recipe"):
        train(alone.model_copy(update={"stages": [colder]}), out, Plan(SHORT))


def test_a_plan_that_changes_more_than_sizes_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    def plan(stage: Stage) -> Stage:
        return stage.model_copy(update={"learning_rate": 1.0})

    with pytest.raises(ValueError, match="the plan for pretext may change only batch_size"):
        train(recipe, tmp_path, plan)
