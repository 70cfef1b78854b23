"""A run folder is read, also one that version 0.1 wrote."""

import shutil
from pathlib import Path

import pytest

from llm2comp.analysis.report import plots
from llm2comp.errors import UserError
from llm2comp.recipe import Recipe, load_recipe
from llm2comp.recipe_parts import During
from llm2comp.training import run_folder
from llm2comp.training.run_folder import Run, read_events, trained_samples

V0_1 = Path(__file__).parents[1] / "fixtures" / "v0_1" / "run-finished"


def test_held_out_losses_of_0_1_get_their_present_names() -> None:
    before = V0_1.joinpath("run.jsonl").read_text()
    assert '"own"' in before
    assert '"matched"' not in before
    measured = [
        event["held_out"]
        for event in read_events(V0_1)
        if event["stage"] == "pretext" and "held_out" in event
    ]
    assert [(m["matched"], m["mismatched"], m["gap"]) for m in measured] == [
        (0.2341, 0.2392, 0.0051),
        (0.2219, 0.223, 0.0011),
    ]
    assert not any({"own", "other"} & set(m) for m in measured)


def test_a_report_draws_the_held_out_losses_of_0_1() -> None:
    curve = plots.curves(Run.read(V0_1).events, "pretext")
    assert curve is not None
    assert "held out, memory of the text" in curve
    assert "held out, memory of another text" in curve


def test_a_damaged_log_is_named_with_its_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(V0_1, run)
    with (run / "run.jsonl").open("a") as log:
        log.write('{"stage": "pre')
    lines = len((run / "run.jsonl").read_text().splitlines())
    with pytest.raises(UserError, match=rf"run\.jsonl:{lines}: not JSON"):
        Run.read(run)


@pytest.mark.parametrize(
    "odd", ["a\x85b", "a\u2028b\u2029c", "Grüße, 你好", "a\nb", " a ", "a: b #"]
)
def test_a_recipe_is_read_as_it_was_written(tiny_recipe: Path, tmp_path: Path, odd: str) -> None:
    written = load_recipe(tiny_recipe)
    written = written.model_copy(update={"prompts": {"query": odd}})
    run_folder.write_recipe(written, tmp_path)
    assert run_folder.read_recipe(tmp_path) == written


def with_during(recipe: Recipe, **changes: object) -> Recipe:
    during = During.model_validate({"data": "dev.jsonl", "every": 3} | changes)
    evaluation = recipe.evaluation.model_copy(update={"during": during})
    return recipe.model_copy(update={"evaluation": evaluation})


def test_a_stage_that_ended_early_read_fewer_samples(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    events = [{"stage": "supervised", "step": n, "score": 1.0, "scores": {}} for n in (0, 3, 6)]
    asked = {stage.stage: stage.steps * stage.batch_size for stage in recipe.stages}
    early = asked | {"supervised": 6 * recipe.stages[2].batch_size}
    assert trained_samples(with_during(recipe, patience=1), events) == early
    assert trained_samples(with_during(recipe), events) == asked
    assert trained_samples(recipe, events) == asked


@pytest.mark.parametrize("tasks", [[], ["STSBenchmarkDev"]])
def test_only_the_sizes_of_tasks_that_decide_must_stay(tiny_recipe: Path, tasks: list[str]) -> None:
    chosen = with_during(load_recipe(tiny_recipe), tasks=tasks).evaluation
    other = chosen.model_copy(update={"quick": not chosen.quick})
    assert (chosen.deciding == other.deciding) is not bool(tasks)


def test_a_run_that_older_versions_took_is_read_as_they_trained_it(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    """With both keys, attention was causal until the step that opened it."""
    opened = load_recipe(tiny_recipe, ["pretext.bidirectional_from_step=2"])
    stage = opened.stages[0].model_copy(update={"attention": "bidirectional"})
    older = opened.model_copy(update={"stages": [stage, *opened.stages[1:]]})
    run_folder.write_recipe(older, tmp_path)
    assert run_folder.read_recipe(tmp_path) == opened
