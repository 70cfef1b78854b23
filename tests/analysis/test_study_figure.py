import math
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from llm2comp.analysis import study_figure
from llm2comp.evaluation.store import Score
from llm2comp.training.study.results import Results, TrialResult


def score(points: float) -> list[Score]:
    return [Score(task, "m", points + i, 1.0, 1, 1.0, 1, quick=True) for i, task in enumerate("ab")]


def study(settings: dict[str, list[float]], *stages: str) -> Results:
    trials = {
        f"{setting}-{seed}": TrialResult(
            setting, seed, scores={stage: score(points) for stage in stages}
        )
        for setting, seeds in settings.items()
        for seed, points in enumerate(seeds)
    }
    return Results("s", trials, {"prompteol": score(40.0)})


def texts(file: Path) -> str:
    return " ".join(" ".join(ET.parse(file).getroot().itertext()).split())


def test_settings_are_bars_beside_the_baselines(tmp_path: Path) -> None:
    found = study({"CTKD": [60.0, 62.0], "EBAE+EBAR": [50.0]}, "after stage 1")
    png, svg = study_figure.draw(found, tmp_path / "scores")
    assert png.stat().st_size > 5000
    shown = texts(svg)
    for wanted in ("prompteol", "40.5", "CTKD", "61.5", "EBAE+EBAR", "50.5", "score x 100"):
        assert wanted in shown
    for panel in ("mean of 2 tasks", "61.0", "62.0"):  # a panel a task, after their mean's
        assert panel in shown
    for group in ("training-free", "after stage 1"):
        assert group in shown
    bars = study_figure._bars(found.rows(), ["b"])
    assert [(bar.name, bar.value) for bar in bars] == [
        ("prompteol", 41.0),
        ("CTKD", 62.0),
        ("EBAE+EBAR", 51.0),
    ]
    assert bars[1].deviation == pytest.approx(2**0.5)
    assert math.isnan(bars[2].deviation)  # of one run there is none


def test_settings_of_a_number_are_lines_over_it(tmp_path: Path) -> None:
    found = study({"CTKD, 1,000": [60.0, 62.0], "CTKD, 496": [50.0], "NLL, 496": [45.0]}, "x")
    _, svg = study_figure.draw(found, tmp_path / "scores")
    shown = texts(svg)
    for wanted in ("CTKD", "NLL", "1,000", "496", "mean of 2 tasks"):
        assert wanted in shown
    assert "prompteol" not in shown
    assert "passages" not in shown
    for trial in found.trials.values():
        trial.passages = 1000 if "1,000" in trial.setting else 496
    _, svg = study_figure.draw(found, tmp_path / "scores")
    assert "passages" in texts(svg)  # what the numbers are of, for that many were seen
    rows = [row for row in found.rows() if row.stage]
    line = study_figure._lines(rows, ["a", "b"])["CTKD"]
    assert [point[:2] for point in line] == [(496, 50.5), (1000, 61.5)]
    assert line[1][2] == pytest.approx(2**0.5)


def test_stages_are_lines_of_their_own(tmp_path: Path) -> None:
    found = study({"SCL steps = 1": [50.0], "SCL steps = 8": [60.0]}, "after UCL", "after SCL")
    rows = [row for row in found.rows() if row.stage]
    lines = study_figure._lines(rows, ["a"])
    assert {name: [x for x, *_ in line] for name, line in lines.items()} == {
        "after UCL": [1, 8],
        "after SCL": [1, 8],
    }
    _, svg = study_figure.draw(found, tmp_path / "scores")
    assert "SCL steps" in texts(svg)
