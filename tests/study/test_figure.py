from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from llm2comp.evaluation.store import Score
from llm2comp.study import figure
from llm2comp.study.results import CellResult, Results


def score(points: float) -> list[Score]:
    return [Score(task, "m", points + i, 1.0, 1, 1.0, 1, quick=True) for i, task in enumerate("ab")]


def study(settings: dict[str, list[float]], *stages: str) -> Results:
    cells = {
        f"{setting}-{seed}": CellResult(
            setting, seed, scores={stage: score(points) for stage in stages}
        )
        for setting, seeds in settings.items()
        for seed, points in enumerate(seeds)
    }
    return Results("s", cells, {"prompteol": score(40.0)})


def texts(file: Path) -> str:
    return " ".join(" ".join(ET.parse(file).getroot().itertext()).split())


def test_settings_are_bars_beside_the_baselines(tmp_path: Path) -> None:
    found = study({"CTKD": [60.0, 62.0], "EBAE+EBAR": [50.0]}, "after stage 1")
    png, svg = figure.draw(found, tmp_path / "scores")
    assert png.stat().st_size > 5000
    shown = texts(svg)
    for wanted in ("prompteol", "40.5", "CTKD", "61.5", "EBAE+EBAR", "50.5", "mean over tasks"):
        assert wanted in shown


def test_settings_that_end_in_a_number_are_lines_over_it(tmp_path: Path) -> None:
    found = study({"CTKD, 1,000": [60.0, 62.0], "CTKD, 496": [50.0], "NLL, 496": [45.0]}, "x")
    _, svg = figure.draw(found, tmp_path / "scores")
    shown = texts(svg)
    for wanted in ("CTKD", "NLL", "1,000", "496"):
        assert wanted in shown
    assert "prompteol" not in shown
    lines = figure._lines(found)
    assert lines["CTKD"] == [(496, 50.5, 0), (1000, 61.5, pytest.approx(2**0.5))]


def test_stages_are_lines_of_their_own(tmp_path: Path) -> None:
    found = study({"k = 1": [50.0], "k = 8": [60.0]}, "after stage 1", "after SCL")
    assert {name: [x for x, *_ in line] for name, line in figure._lines(found).items()} == {
        "k, after stage 1": [1, 8],
        "k, after SCL": [1, 8],
    }
    figure.draw(found, tmp_path / "scores")
