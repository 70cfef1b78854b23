"""What a study file may say: mistakes, the quick version, overrides and plots."""

from pathlib import Path

import pytest
import yaml
from rich.console import Console
from run_study import edit

from llm2comp.errors import UserError
from llm2comp.recipe import study_path
from llm2comp.training.study.plan import load_study, recipe_value, trial
from llm2comp.training.study.run import StudyRun

REPOSITORY = Path(__file__).parents[3]
SHIPPED = sorted((REPOSITORY / "recipes" / "study").glob("*.yaml"))


def test_quick_changes_what_the_study_says_it_should(study_file: Path) -> None:
    quick = load_study(study_file, quick=True)
    assert quick.name == "tiny-quick"
    assert quick.tuning is None
    assert quick.seeds == [5]
    recipe = trial(quick, "MNTP", 5).recipe
    assert recipe.stages[0].steps == 2
    assert recipe.stages[0].objective == "mntp"
    assert recipe.seed == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "did you mean 'seeds'"),
        ({"settings": {"a": ["pretext.stepps=1"]}}, r"setting 'a'.*did you mean 'steps'"),
        ({"settings": {"a b": [], "a-b": []}}, "must differ"),
        ({"settings": {"a+": [], "a=": []}}, "must differ"),  # one folder in the store
        ({"tuning": {"key": "pretext.steps", "values": [2, 2]}}, "must differ"),
        (
            {"tuning": {"key": "pretext.steps", "values": [1, 2], "values_of": {"MNTP": [1]}}},
            "values_of: MNTP has 1 value, and tuning.values has 2; .* same budget",
        ),
        (
            {"tuning": {"key": "pretext.steps", "values": [1, 2], "values_of": {"M": [1, 2]}}},
            "values_of: there is no setting 'M'; the settings are CTKD, MNTP",
        ),
        (
            {"tuning": {"key": "seed", "values": [1, 2], "values_of": {"MNTP": [3, -1]}}},
            "setting 'MNTP': seed",
        ),
        (
            {"tuning": {"key": "pretext.steps", "values": [1, 2], "tasks": ["STS17"]}},
            "'STS17' is not a development task",
        ),
    ],
)
def test_mistakes_are_found_before_anything_runs(
    study_file: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_study(edit(study_file, **changes))


@pytest.mark.parametrize("from_tuning", [True, False], ids=["from tuning", "from settings"])
def test_a_required_key_may_come_from_each_trial_unless_there_are_baselines(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_tuning: bool
) -> None:
    recipe = yaml.safe_load(study_file.read_text())["recipe"]
    del recipe["stages"][0]["learning_rate"]
    changes: dict[str, object] = {} if from_tuning else {"tuning": None}
    settings = {"CTKD": [] if from_tuning else ["pretext.learning_rate=0.01"]}
    alone = recipe | {"evaluation": {"tasks": ["STS17"]}}
    edit(study_file, recipe=alone, settings=settings, **changes)
    monkeypatch.setattr(StudyRun, "_attempt", lambda *_: None)
    assert not StudyRun(load_study(study_file), tmp_path / "out", Console(quiet=True)).run().failed
    edit(study_file, recipe=recipe)
    with pytest.raises(UserError, match=r"evaluation\.baselines are scored: .*learning_rate"):
        load_study(study_file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"a": [], "b": ["evaluation.tasks=[STS71]"]}}, "unknown task 'STS71'"),
        ({"settings": {"a": [], "b": ["evaluation={tasks: [R8], vectors: k}"]}}, "R8 has no such"),
        ({"evaluation": {"tasks": ["STS17"], "baselines": ["last"]}}, "unknown baseline 'last'"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_a_trial_trains(
    study_file: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    recipe = yaml.safe_load(study_file.read_text())["recipe"]
    if "evaluation" in changes:
        changes = {"recipe": recipe | changes}
    with pytest.raises(UserError, match=message):
        StudyRun(load_study(edit(study_file, **changes)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
def test_every_shipped_study_parses_and_is_found_by_name(path: Path, quick: bool) -> None:
    study = load_study(study_path(path.stem), quick=quick)
    for setting in study.settings:
        for seed in study.seeds:
            assert trial(study, setting, seed).recipe.seed == seed


@pytest.mark.parametrize(
    ("plot", "message"),
    [
        ({"x": "pretext.stepps"}, "plot: setting 'CTKD': .* no key 'pretext.stepps'"),
        ({"x": "supervised.steps"}, "no key 'supervised.steps'"),
        ({"x": "pretext.steps.more"}, "no key 'pretext.steps.more'"),
        ({"x": "pretext.steps", "line": "objective"}, "no key 'objective'"),
        ({"x": "pretext.objective"}, "is 'distillation', and a plot needs a number"),
        ({"x": "seed"}, "seed is 0, and a plot needs a number above 0"),
        ({"x": "pretext.steps", "lines": "seed"}, "did you mean 'line'"),
    ],
)
def test_a_plot_s_wrong_key_is_found_before_anything_runs(
    study_file: Path, plot: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_study(edit(study_file, plot=plot))


def test_a_key_is_read_as_an_override_writes_it(study_file: Path) -> None:
    study = load_study(edit(study_file, plot={"x": "pretext.data.0.weight", "line": "memory.init"}))
    recipe = trial(study, "CTKD", 1).recipe
    assert recipe_value(recipe, "seed") == 1
    assert recipe_value(recipe, "pretext.steps") == recipe.stages[0].steps
    assert study.plot is not None
    assert study.plot.point(recipe) == ("random", 1.0)
