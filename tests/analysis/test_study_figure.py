import math
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from llm2comp.analysis import study_figure
from llm2comp.evaluation.store import Score
from llm2comp.recipe import study_path
from llm2comp.training.study import results
from llm2comp.training.study.plan import Plot, Study, load_study, trial
from llm2comp.training.study.results import Results, TrialResult

RESULTS = Path(__file__).parents[2] / "results"


def score(points: float) -> list[Score]:
    return [Score(task, "m", points + i, 1.0, 1, 1.0, 1, quick=True) for i, task in enumerate("ab")]


def scored(settings: dict[str, list[float]], *stages: str) -> Results:
    trials = {
        f"{setting}-{seed}": TrialResult(
            setting, seed, scores={stage: score(points) for stage in stages}
        )
        for setting, seeds in settings.items()
        for seed, points in enumerate(seeds)
    }
    return Results("s", trials, {"prompteol": score(40.0)})


def study(settings: dict[str, list[str]], **plot: object) -> Study:
    stage = {
        "stage": "pretext",
        "data": [{"source": "x"}],
        "steps": 1,
        "batch_size": 8,
        "learning_rate": 1.0,
    }
    return Study(
        name="s",
        recipe={"stages": [stage]},
        settings=settings,
        plot=Plot.model_validate(plot) if plot else None,
    )


def points(of: Study) -> dict[str, tuple[str, float]]:
    assert of.plot is not None
    return {setting: of.plot.point(trial(of, setting, 0).recipe) for setting in of.settings}


def texts(file: Path) -> str:
    return " ".join(" ".join(ET.parse(file).getroot().itertext()).split())


def test_settings_are_bars_beside_the_baselines(tmp_path: Path) -> None:
    found = scored({"CTKD": [60.0, 62.0], "EBAE+EBAR": [50.0]}, "after stage 1")
    bar_study = study({"CTKD": [], "EBAE+EBAR": []})
    png, svg = study_figure.draw(found, bar_study, tmp_path / "scores")
    assert png.stat().st_size > 5000
    shown = texts(svg)
    for wanted in ("prompteol", "40.5", "CTKD", "61.5", "EBAE+EBAR", "50.5", "score x 100"):
        assert wanted in shown
    for panel in ("mean of 2 tasks", "61.0", "62.0"):  # one panel per task, after their mean's
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
    assert math.isnan(bars[2].deviation)  # a single run has no deviation


def test_a_task_that_a_setting_lacks_is_not_drawn(tmp_path: Path) -> None:
    found = scored({"CTKD": [60.0, 62.0], "NLL": [50.0]}, "after stage 1")
    del found.trials["NLL-0"].scores["after stage 1"][1]
    _, svg = study_figure.draw(found, study({"CTKD": [], "NLL": []}), tmp_path / "scores")
    values = [[bar.value for bar in study_figure._bars(found.rows(), [task])] for task in "ab"]
    assert values[0] == [40.0, 61.0, 50.0]
    assert values[1][:2] == [41.0, 62.0]
    assert math.isnan(values[1][2])
    assert texts(svg).split().count("-") == 2  # its task, and the mean
    assert "nan" not in texts(svg)
    settings = {"CTKD": ["pretext.steps=2"], "NLL": ["pretext.steps=4"]}
    study_figure.draw(found, study(settings, x="pretext.steps"), tmp_path / "lines")


def test_with_a_plot_settings_of_any_name_are_points_of_lines(tmp_path: Path) -> None:
    found = scored({"long": [60.0, 62.0], "short": [50.0], "short, alone": [45.0]}, "x")
    settings = {
        "long": ["pretext.steps=125"],
        "short": ["pretext.steps=62"],
        "short, alone": ["pretext.steps=62", "pretext.objective=continuation"],
    }
    plot = {
        "x": "pretext.steps",
        "times": "pretext.batch_size",
        "line": "pretext.objective",
        "names": {"distillation": "CTKD", "continuation": "NLL"},
    }
    line_study = study(settings, **plot)
    _, svg = study_figure.draw(found, line_study, tmp_path / "scores")
    shown = texts(svg)
    for wanted in ("CTKD", "NLL", "1,000", "496", "mean of 2 tasks", "pretext.steps"):
        assert wanted in shown
    for unwanted in ("prompteol", "passages", "short", "distillation"):
        assert unwanted not in shown
    line_study = study(settings, **plot, label="passages")
    _, svg = study_figure.draw(found, line_study, tmp_path / "scores")
    assert "passages" in texts(svg)
    rows = [row for row in found.rows() if row.stage]
    line = study_figure._lines(rows, points(line_study), ["a", "b"])["CTKD"]
    assert [point[:2] for point in line] == [(496, 50.5), (1000, 61.5)]
    assert line[1][2] == pytest.approx(2**0.5)


def test_stages_are_lines_of_their_own(tmp_path: Path) -> None:
    found = scored({"one": [50.0], "eight": [60.0]}, "after UCL", "after SCL")
    settings = {"one": ["pretext.steps=1"], "eight": ["pretext.steps=8"]}
    line_study = study(settings, x="pretext.steps", label="SCL steps")
    rows = [row for row in found.rows() if row.stage]
    lines = study_figure._lines(rows, points(line_study), ["a"])
    assert {name: [x for x, *_ in line] for name, line in lines.items()} == {
        "after UCL": [1, 8],
        "after SCL": [1, 8],
    }
    _, svg = study_figure.draw(found, line_study, tmp_path / "scores")
    assert "SCL steps" in texts(svg)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("memory_tokens", ["k", "1", "2", "4", "8", "16"]),
        ("samples", ["passages", "496", "1,000", "2,000", "4,000", "CTKD", "NLL"]),
        ("scl_steps", ["SCL steps", "5", "10", "20", "40", "after UCL", "after SCL"]),
        ("pretext", ["training-free", "CTKD", "EBAE+EBAR", "prompteol"]),
    ],
)
def test_shipped_studies_draw_what_their_figures_show(
    name: str, wanted: list[str], tmp_path: Path
) -> None:
    found = results.read(RESULTS / name, name)
    _, svg = study_figure.draw(found, load_study(study_path(name)), tmp_path / name)
    shown = [" ".join(text.split()) for text in ET.parse(svg).getroot().itertext()]
    assert set(wanted) <= set(shown)


def test_lines_may_be_named_by_several_keys() -> None:
    untrained = ["pretext.steps=0", "pretext.objective=mntp"]
    of = study(
        {
            "CTKD": [],
            "MNTP": ["pretext.objective=mntp", "pretext.attention=bidirectional"],
            "bare": [*untrained, "pretext.attention=causal"],
        },
        x="pretext.batch_size",
        line=["pretext.objective", "pretext.attention"],
        names={"distillation, causal": "CTKD", "mntp, causal": "bare backbone"},
    )
    names = {setting: line for setting, (line, _) in points(of).items()}
    assert names == {"CTKD": "CTKD", "MNTP": "mntp, bidirectional", "bare": "bare backbone"}
