"""What `scores.json` holds after an encoder is made anew, and after the evaluation changes."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from mteb.abstasks import AbsTask

from llm2comp.errors import NoScoreError, UserError
from llm2comp.evaluation import runner
from llm2comp.evaluation.store import Score
from llm2comp.recipe import Recipe, load_recipe
from llm2comp.recipe_parts import Evaluation
from llm2comp.training import pipeline
from llm2comp.training.run_folder import Scores, read_scores, write_scores
from llm2comp.training.scoring import score_run

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
    shutil.rmtree(run / "1-pretext")
    with pytest.raises(UserError, match=r"1-pretext is not there, .* remove \S*model too"):
        pipeline.train(recipe, run)
    shutil.rmtree(run / "model")
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


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Let every score be 1, and return the rows and their tasks that are scored.

    TREC of the encoder stops the call.
    """
    seen: list[tuple[str, list[str]]] = []

    def evaluate(_: object, name: str, tasks: Sequence[AbsTask]) -> list[Score]:
        names = [task.metadata.name for task in tasks]
        if name == STAGE and "TREC" in names:
            raise KeyboardInterrupt
        seen.append((name, names))
        return [scored(task.metadata.name, 1.0, quick=task.quick) for task in tasks]

    monkeypatch.setattr(runner, "evaluate", evaluate)
    return seen


def score(recipe: Recipe, run: Path, tasks: list[str], **settings: object) -> Scores:
    evaluation = Evaluation.model_validate({"tasks": tasks} | settings)
    return score_run(recipe.model_copy(update={"evaluation": evaluation}), run)


def points(rows: Scores) -> dict[str, dict[str, float]]:
    return {name: {one.task: one.main_score for one in row} for name, row in rows.items()}


def test_only_tasks_without_a_score_are_scored(
    recipe: Recipe, run: Path, evaluated: list[tuple[str, list[str]]]
) -> None:
    write_scores(run, {STAGE: [scored("STS17", 50.0), scored("R8", 60.0)]})
    rows = score(recipe, run, ["STSBenchmark", "STS17"], baselines=[BASELINE])
    assert evaluated == [
        (BASELINE, ["STSBenchmark"]),
        (BASELINE, ["STS17"]),
        (STAGE, ["STSBenchmark"]),
    ]
    both = {
        BASELINE: {"STSBenchmark": 1.0, "STS17": 1.0},
        STAGE: {"STSBenchmark": 1.0, "STS17": 50},
    }
    assert points(rows) == both
    assert [*read_scores(run)] == [BASELINE, STAGE]
    assert points(read_scores(run)) == both | {STAGE: both[STAGE] | {"R8": 60.0}}
    evaluated.clear()
    assert points(score(recipe, run, ["R8"])) == {STAGE: {"R8": 60.0}}
    assert not evaluated
    score(recipe, run, ["R8"], quick=False)
    assert evaluated == [(STAGE, ["R8"])]
    whole = {name: [(one.task, one.quick) for one in row] for name, row in read_scores(run).items()}
    assert whole == {STAGE: [("R8", False)]}, "a table has scores of one size"


def test_a_task_without_a_score_is_left_out_and_the_others_are_scored(
    recipe: Recipe, run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def evaluate(_: object, name: str, tasks: Sequence[AbsTask]) -> list[Score]:
        (task,) = (one.metadata.name for one in tasks)
        if (name, task) == (BASELINE, "STS17"):
            raise NoScoreError("it has collapsed")
        return [scored(task, 1.0)]

    monkeypatch.setattr(runner, "evaluate", evaluate)
    rows = score(recipe, run, ["STS17", "TREC"], baselines=[BASELINE])
    assert points(rows) == {BASELINE: {"TREC": 1.0}, STAGE: {"STS17": 1.0, "TREC": 1.0}}
    assert points(read_scores(run)) == points(rows)
    assert caplog.messages == ["it has collapsed"]


def test_rows_of_one_vector_stay_beside_those_of_k(
    recipe: Recipe, run: Path, evaluated: list[tuple[str, list[str]]]
) -> None:
    score(recipe, run, ["STS17"])
    score(recipe, run, ["STS17"], vectors="k")
    assert [name for name, _ in evaluated] == [STAGE, f"{STAGE}, k vectors"]
    assert read_scores(run).keys() == {STAGE, f"{STAGE}, k vectors"}
    score(recipe, run, ["STS17"])
    assert len(evaluated) == 2


@pytest.mark.usefixtures("evaluated")
def test_rows_that_come_later_stay_when_scoring_is_stopped(recipe: Recipe, run: Path) -> None:
    write_scores(run, {BASELINE: [scored("STS17", 40.0)], STAGE: [scored("STS17", 50.0)]})
    with pytest.raises(KeyboardInterrupt):
        score(recipe, run, ["STS17", "TREC"], baselines=[BASELINE])
    expected = {BASELINE: {"STS17": 40.0, "TREC": 1.0}, STAGE: {"STS17": 50.0}}
    assert points(read_scores(run)) == expected
