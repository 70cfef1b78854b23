import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llm2comp.cli.app import app
from llm2comp.errors import UserError
from llm2comp.evaluation import store
from llm2comp.evaluation.results import Leaderboard
from llm2comp.evaluation.store import ResultStore, Score, TaskResult
from llm2comp.model.folder.reference import Reference
from llm2comp.model.lineage import Lineage
from llm2comp.recipe import Recipe

RUNNER = CliRunner()


def one(
    model: str, task: str, points: float, kind: str, right: list[float] | None = None
) -> TaskResult:
    score = Score(task, "metric", points, 1.0, 10, 10.0, 5, quick=False)
    gold = [0.0] * len(right or [])
    items = {"statistic": "mean", "predicted": right, "gold": gold} if right else {}
    return TaskResult(model, score, kind, "", {}, "key", store.versions(), None, items)


FOUND = [
    one("low_1", "TREC", 40.0, "classification", [0.0, 0.0, 1.0, 1.0, 0.0] * 20),
    one("low_1", "STSBenchmark", 50.0, "sts"),
    one("low_1", "STS17", 60.0, "sts"),
    one("high", "TREC", 60.0, "classification", [1.0, 0.0, 1.0, 1.0, 0.0] * 20),
    one("high", "STSBenchmark", 70.0, "sts"),
    one("high", "STS17", 80.0, "sts"),
    one("part", "STS17", 99.0, "sts"),
]


def test_rows_are_sorted_and_a_mean_is_over_all_tasks() -> None:
    assert Leaderboard.of(FOUND).cells() == [
        ["model", "STSBenchmark", "STS17", "TREC", "mean"],
        ["high", "70.0", "80.0", "60.0", "70.0"],
        ["low_1", "50.0", "60.0", "40.0", "50.0"],
        ["part", "-", "99.0", "-", "-"],
    ]
    assert [row[0] for row in Leaderboard.of(FOUND).cells(sort="STS17")[1:]] == [
        "part",
        "high",
        "low_1",
    ]


def test_types_weigh_the_same_however_many_tasks_they_have() -> None:
    assert Leaderboard.of(FOUND).by_type().cells(against="low_1") == [
        ["model", "sts", "classification", "mean"],
        ["high", "75.0 (+20.0)", "60.0 (+20.0)", "67.5 (+20.0)"],
        ["low_1", "55.0", "40.0", "47.5"],
        ["part", "-", "-", "-"],
    ]


def test_the_papers_scores_are_shown_for_its_tasks_only() -> None:
    cells = Leaderboard.of(FOUND, with_paper=True).cells(sort="STS17")
    rows = {row[0]: row[1:] for row in cells}
    assert rows["LLM2Comp KL (paper)"] == ["70.9", "81.6", "-", "-"]
    assert len(rows) == 1 + 3 + 11


def test_intervals_are_shown_for_tasks_with_items() -> None:
    heading, row, _ = Leaderboard.of(FOUND).interval_cells("low_1")
    assert heading == ["difference", "STSBenchmark", "STS17", "TREC"]
    assert row[:3] == ["high - low_1", "+20.0", "+20.0"]
    gap, low, high = (float(part) for part in re.findall(r"[-+][\d.]+", row[3]))
    # One item of five differs, by 1: a standard error of 100 * 0.4 / 10.
    assert gap == 20
    assert [low, high] == pytest.approx([20 - 1.96 * 4, 20 + 1.96 * 4], abs=1.5)


def a_lineage() -> Lineage:
    stage = {"stage": "unsupervised", "data": [{"source": "x"}], "steps": 1, "batch_size": 2}
    recipe = {"name": "r", "stages": [stage | {"learning_rate": 1.0}]}
    return Lineage.start(Recipe.model_validate(recipe), "memory")


def test_encoders_that_had_one_name_after_each_other_have_rows_of_their_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = a_lineage()
    second = first.model_copy(update={"seed": first.seed + 1})
    found = [
        replace(one("mine", "STS17", 80.0, "sts", [1.0, 0.6]), lineage=first),
        replace(one("mine", "TREC", 40.0, "classification", [0.4, 0.4]), lineage=second),
        one("mine (2)", "STS17", 70.0, "sts", [0.7, 0.7]),
        one("mine (2)", "TREC", 60.0, "classification", [0.6, 0.6]),
    ]
    board = Leaderboard.of(found)
    assert board.cells()[1:] == [
        ["mine (2)", "70.0", "60.0", "65.0"],
        ["mine", "80.0", "-", "-"],
        ["mine (3)", "-", "40.0", "-"],
    ]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "mine has scores of 2 encoders" in line
    assert "(mine: STS17; mine (3): TREC)" in line
    rows = {row[0]: row[1:] for row in board.interval_cells("mine (2)")[1:]}
    assert rows.keys() == {"mine - mine (2)", "mine (3) - mine (2)"}
    assert [cell == "-" for cell in rows["mine - mine (2)"]] == [False, True]
    assert [cell == "-" for cell in rows["mine (3) - mine (2)"]] == [True, False]
    caplog.clear()
    assert len(Leaderboard.of(found[::2]).cells()) == 1 + 2
    assert not caplog.records


def test_one_encoder_has_one_row_also_where_its_lineage_is_rounded_or_not_known(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bare = a_lineage()

    def measured(*numbers: float) -> Lineage:
        reference = Reference(texts=["a"], prompt="", embeddings=[list(numbers)])
        return bare.model_copy(update={"reference": reference})

    tasks = ["STS17", "TREC", "R8", "STSBenchmark"]
    lineages = [None, measured(0.6, 0.8), measured(0.6000001, 0.8), measured(0.8, 0.6)]
    found = [
        replace(one("mine", task, 80.0, "sts", [1.0, 0.6]), lineage=lineage)
        for task, lineage in zip(tasks, lineages, strict=True)
    ]
    board = Leaderboard.of(found)
    assert {name: set(points) for name, points in board.points.items()} == {
        "mine": {"STS17", "TREC", "R8"},
        "mine (2)": {"STSBenchmark"},
    }
    caplog.clear()
    assert list(Leaderboard.of(found[:3]).points) == ["mine"]
    assert not caplog.records


def test_one_item_has_no_interval() -> None:
    found = [
        one("one", "TREC", 80.0, "classification", [0.8]),
        one("other", "TREC", 100.0, "classification", [1.0]),
    ]
    assert Leaderboard.of(found).interval_cells("one")[1:] == [["other - one", "+20.0"]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Leaderboard.of([]), "no results here yet"),
        (lambda: Leaderboard.of(FOUND).cells(sort="SciFact"), "no column 'SciFact'"),
        (
            lambda: Leaderboard.of(FOUND).cells(against="x"),
            "no model 'x' in the results; there are low_1",
        ),
        (lambda: Leaderboard.of(FOUND).interval_cells("x"), "no model 'x'"),
    ],
)
def test_a_missing_result_column_or_model_is_an_error(call: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("to", "line"),
    [
        ("terminal", "high           70.0   80.0  60.0  70.0"),
        ("markdown", "| low_1 | 50.0 | 60.0 | 40.0 | 50.0 |"),
        ("csv", "part,-,99.0,-,-"),
        ("latex", r"low\_1 & 50.0 & 60.0 & 40.0 & 50.0 \\"),
    ],
)
def test_the_command_writes_each_format(to: str, line: str, tmp_path: Path) -> None:
    for result in FOUND:
        ResultStore(tmp_path).save(result)
    called = RUNNER.invoke(app, ["results", str(tmp_path), "--to", to])
    assert called.exit_code == 0, called.output
    assert line in called.stdout.splitlines()
    empty = RUNNER.invoke(app, ["results", str(tmp_path), "--quick"])
    assert (empty.exit_code, "no results here yet" in empty.output) == (2, True)
