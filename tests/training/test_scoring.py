"""What `scores.json` of a run holds, when encoders are made anew and when the evaluation changes."""

import shutil
from pathlib import Path

import pytest

from llm2comp.evaluation.store import Score
from llm2comp.recipe import Recipe, load_recipe
from llm2comp.training import pipeline
from llm2comp.training.run_folder import read_scores, write_scores

STAGE, BASELINE = "after stage 1", "prompteol"


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Path) -> Recipe:
    """Stage 1 without a step."""
    loaded = load_recipe(tiny_recipe, ["pretext.steps=0"])
    return loaded.model_copy(update={"stages": loaded.stages[:1]})


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run; tests must not write to it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    pipeline.train(recipe, out)
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run, to write to."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def scored(task: str, value: float, *, quick: bool = True) -> Score:
    return Score(
        task=task,
        metric="ndcg_at_10",
        main_score=value,
        seconds=1.0,
        texts=1,
        texts_per_second=1.0,
        samples=1,
        quick=quick,
    )


def test_an_encoder_that_is_made_anew_loses_its_scores_and_the_other_rows_stay(
    recipe: Recipe, run: Path
) -> None:
    row = [scored("STS17", 50.0)]
    others = {BASELINE: row, "after SCL": row}
    write_scores(run, {BASELINE: row, STAGE: row, f"{STAGE}, k vectors": row, "after SCL": row})
    pipeline.train(recipe, run)
    assert read_scores(run).keys() == {*others, STAGE, f"{STAGE}, k vectors"}
    for name in ("1-pretext", "model"):
        shutil.rmtree(run / name)
    pipeline.train(recipe, run)
    assert read_scores(run) == others


def test_a_folder_that_is_taken_for_another_recipe_keeps_no_scores(
    recipe: Recipe, run: Path
) -> None:
    write_scores(run, {BASELINE: [scored("STS17", 50.0)]})
    for name in ("1-pretext", "model"):
        shutil.rmtree(run / name)
    pipeline.train(recipe.model_copy(update={"seed": 1}), run)
    assert read_scores(run) == {}
