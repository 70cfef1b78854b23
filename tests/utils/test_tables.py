"""A table has the same cells in Markdown and on the terminal."""

import io

from rich.console import Console

from llm2comp.evaluation import results
from llm2comp.evaluation.store import Score
from llm2comp.utils import tables


def score(task: str, percent: float) -> Score:
    return Score(task, "metric", percent, 1.0, 10, 10.0, 5, quick=True)


ROWS = {
    "first [a]": [score("One", 40.04), score("Two", 60.0)],
    "second|b": [score("One", 50.0)],
}
EXTRA = {"time": {"first [a]": "12 s"}}


def test_only_a_model_with_all_tasks_has_a_mean() -> None:
    assert tables.markdown(results.score_cells(ROWS, EXTRA)).splitlines() == [
        "| model | One | Two | mean | time |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| first [a] | 40.0 | 60.0 | 50.0 | 12 s |",
        "| second\\|b | 50.0 | - | - | - |",
    ]


def test_the_terminal_shows_the_same_cells() -> None:
    stream = io.StringIO()
    results.show(ROWS, EXTRA, Console(file=stream, width=120))
    heading, first, second = stream.getvalue().splitlines()
    assert heading.split() == ["model", "One", "Two", "mean", "time"]
    assert first.split() == ["first", "[a]", "40.0", "60.0", "50.0", "12", "s"]
    assert second.split() == ["second|b", "50.0", "-", "-", "-"]
