"""A study on the tiny backbone: its table, resuming, failures, and stages that are shared."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from llm2comp.errors import UserError
from llm2comp.evaluation import runner
from llm2comp.evaluation.store import Score
from llm2comp.recipe import study_path
from llm2comp.training import pipeline
from llm2comp.training.study import results
from llm2comp.training.study.plan import load_study, recipe_value, trial
from llm2comp.training.study.run import StudyRun

REPOSITORY = Path(__file__).parents[3]
RECORDED = sorted(path.parent for path in REPOSITORY.glob("results/*/results.json"))
SHIPPED = sorted((REPOSITORY / "recipes" / "study").glob("*.yaml"))
KEYS = ("backbone", "memory", "stages")


@pytest.fixture
def study_file(tiny_recipe: Path, tmp_path: Path) -> Path:
    shared = yaml.safe_load(tiny_recipe.read_text())
    pretext = {**shared["stages"][0], "steps": 6, "save_steps": 3, "eval_steps": 6}
    study = {
        "name": "tiny",
        "recipe": {
            "backbone": shared["backbone"],
            "memory": shared["memory"],
            "stages": [pretext],
            "evaluation": {"tasks": ["STS17"], "baselines": ["last-token"]},
        },
        "settings": {
            "CTKD": ["pretext.objective=distillation"],
            "MNTP": ["pretext.objective=mntp", "pretext.attention=bidirectional"],
        },
        "seeds": [0, 1],
        "tuning": {"key": "pretext.learning_rate", "values": [0.01, 0.001]},
        "quick": {"seeds": [5], "overrides": ["pretext.steps=2"]},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def edit(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes, sort_keys=False))
    return path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the run folders that were trained, in order."""
    calls: list[str] = []
    train = pipeline.train

    def record(recipe, out, console=None):  # noqa: ANN001, ANN202
        calls.append(out.name)
        return train(recipe, out, console)

    monkeypatch.setattr(pipeline, "train", record)
    return calls


def go(path: Path, out: Path, reuse: Sequence[Path] = ()) -> results.Results:
    return StudyRun(load_study(path), out, Console(quiet=True), reuse).run()


def test_every_setting_tries_the_same_values_and_runs_all_seeds_with_its_best(
    study_file: Path, tmp_path: Path, sets: object, trained: list[str]
) -> None:
    found = go(study_file, tmp_path / "study")
    assert not found.failed
    tuned = [result for result in found.trials.values() if result.development]
    assert [(t.setting, t.value, t.seed) for t in tuned] == [
        (setting, value, 0) for setting in ("CTKD", "MNTP") for value in (0.01, 0.001)
    ]
    assert {s.task for t in tuned for s in t.development} == {"STSBenchmarkDev"}
    scored = [result for result in found.trials.values() if result.scores]
    assert len(scored) == 4
    for result in scored:
        rivals = [t for t in tuned if t.setting == result.setting]
        assert result.value == max(rivals, key=lambda t: results.mean(t.development)).value
    assert len(found.trials) == len({*trained}) == load_study(study_file).size
    assert list(found.baselines) == ["last-token"]


def test_trials_have_the_same_budget(study_file: Path, tmp_path: Path, sets: object) -> None:
    found = go(study_file, tmp_path / "study")
    first = [result for result in found.trials.values() if result.seed == 0]
    assert len({(result.passages, result.tokens) for result in first}) == 1
    assert first[0].passages == 24
    logs = [
        (tmp_path / "study" / "cells" / name / "run.jsonl").read_text() for name in found.trials
    ]
    assert all('"passages": 24' in log for log in logs)


def test_a_stopped_study_continues_and_does_nothing_twice(
    study_file: Path, tmp_path: Path, sets: object, trained: list[str]
) -> None:
    whole = go(study_file, tmp_path / "whole")
    trained.clear()
    out = tmp_path / "stopped"

    class Stopped(BaseException):
        pass

    def stop_at(count: int) -> None:
        run = StudyRun(load_study(study_file), out, Console(quiet=True))
        write = results.Results.write

        def writing(self, folder):  # noqa: ANN001, ANN202
            write(self, folder)
            nonlocal count
            count -= 1
            if not count:
                raise Stopped

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(results.Results, "write", writing)
            with pytest.raises(Stopped):
                run.run()

    stop_at(3)
    stop_at(2)
    # The scores are enough to continue, whether the trial's value was chosen or not.
    shutil.rmtree(out / "cells" / next(iter(whole.trials)))
    again = go(study_file, out)
    assert again.score_table() == whole.score_table()
    assert again.tuning_table() == whole.tuning_table()
    trained.clear()
    assert go(study_file, out).score_table() == whole.score_table()
    assert trained == []


def test_a_failed_trial_is_reported_and_does_not_stop_the_others(
    study_file: Path, tmp_path: Path, sets: object
) -> None:
    broken = {"settings": {"broken": ["pretext.objective=mntp"], "CTKD": []}, "tuning": None}
    edit(study_file, **broken)
    out = tmp_path / "study"
    found = go(study_file, out)
    assert list(found.failed) == ["broken-seed0", "broken-seed1"]
    assert "attention=bidirectional" in found.failed["broken-seed0"]
    assert [row[:2] for row in found.score_table()[1:]] == [["last-token", "1"], ["CTKD", "2"]]
    assert "broken" in (out / "results.json").read_text()
    assert list(go(study_file, out).failed) == ["broken-seed0", "broken-seed1"]


def weights(study: Path) -> bytes:
    """The weights of the first stage of a study with one trial."""
    return (study / "cells" / "ctkd-seed0" / "1-pretext" / "model.safetensors").read_bytes()


def stages_trained(study: Path) -> list[str]:
    """The stages that the log of a study with one trial says were finished, in order."""
    log = (study / "cells" / "ctkd-seed0" / "run.jsonl").read_text().splitlines()
    return [event["stage"] for event in map(json.loads, log) if event.get("done")]


@pytest.fixture
def two_stages(study_file: Path, tiny_recipe: Path, tmp_path: Path, sets: object) -> Path:
    """A study whose first stage is that of a study which has run in the folder `first`."""
    edit(study_file, tuning=None, seeds=[0], settings={"CTKD": ["pretext.objective=distillation"]})
    go(study_file, tmp_path / "first")
    recipe = yaml.safe_load(study_file.read_text())["recipe"]
    contrastive = yaml.safe_load(tiny_recipe.read_text())["stages"][1] | {"steps": 2}
    recipe["stages"].append(contrastive)
    return edit(study_file, recipe=recipe, name="second")


def test_reuse_copies_stage_1_from_another_study(two_stages: Path, tmp_path: Path) -> None:
    found = go(two_stages, tmp_path / "second", reuse=[tmp_path / "first"])
    names = [row[0] for row in found.score_table()[1:]]
    assert names == ["last-token", "CTKD, after stage 1", "CTKD, after UCL"]
    assert weights(tmp_path / "first") == weights(tmp_path / "second")
    logs = [
        (tmp_path / name / "cells" / "ctkd-seed0" / "run.jsonl").read_text().splitlines()
        for name in ("first", "second")
    ]
    assert logs[1][: len(logs[0])] == logs[0]  # with its seconds: stage 1 was not trained again
    assert stages_trained(tmp_path / "second") == ["pretext", "unsupervised"]
    assert found.trials["ctkd-seed0"].passages == 24


def test_nothing_is_copied_from_a_study_that_is_not_named(two_stages: Path, tmp_path: Path) -> None:
    marked = tmp_path / "first" / "cells" / "ctkd-seed0" / "1-pretext" / "model.safetensors"
    marked.write_bytes(b"copied")
    go(two_stages, tmp_path / "second")
    assert weights(tmp_path / "second") != b"copied"
    assert stages_trained(tmp_path / "second") == ["pretext", "unsupervised"]


@pytest.mark.parametrize("exists", [False, True], ids=["missing", "a folder of something else"])
def test_a_folder_to_reuse_that_is_no_study_is_refused(
    study_file: Path, tmp_path: Path, exists: bool
) -> None:
    folder = tmp_path / "elsewhere"
    if exists:
        folder.mkdir()
    with pytest.raises(UserError, match=r"--reuse .*elsewhere: .* it has no study\.yaml"):
        StudyRun(load_study(study_file), tmp_path / "study", reuse=[folder])
    assert not (tmp_path / "study").exists()


def test_trials_share_their_equal_first_stages_and_the_log_of_these_stages(
    study_file: Path,
    tiny_recipe: Path,
    tmp_path: Path,
    sets: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluate, scored = runner.evaluate, []

    def record(model, name, *rest):  # noqa: ANN001, ANN002, ANN202
        scored.append(name)
        return evaluate(model, name, *rest)

    monkeypatch.setattr(runner, "evaluate", record)
    shared = yaml.safe_load(study_file.read_text())["recipe"]
    shared["stages"] += [
        s | {"steps": 2} for s in yaml.safe_load(tiny_recipe.read_text())["stages"][1:]
    ]
    settings = {f"steps = {n}": [f"supervised.steps={n}"] for n in (2, 3)}
    edit(study_file, tuning=None, seeds=[0], settings=settings, recipe=shared)
    found = go(study_file, tmp_path / "study")
    assert not found.failed
    assert len(scored) == 5  # the baseline, stage 1, UCL, and SCL twice
    assert all(len(result.scores) == 3 for result in found.trials.values())
    short, long = sorted((tmp_path / "study" / "cells").iterdir())
    for stage in ("1-pretext", "2-unsupervised"):
        one, other = ((run / stage / "model.safetensors").read_bytes() for run in (short, long))
        assert one == other
    logs = [
        [json.loads(line) for line in (run / "run.jsonl").read_text().splitlines()]
        for run in (short, long)
    ]
    one, other = ([e for e in log if e["stage"] != "supervised"] for log in logs)
    assert one == other  # with the seconds of the first: nothing was trained anew
    assert [[e["stage"] for e in log if e.get("done")] for log in logs] == [
        ["pretext", "unsupervised", "supervised"]
    ] * 2


def test_another_study_s_folder_is_refused(study_file: Path, tmp_path: Path) -> None:
    StudyRun(load_study(study_file), tmp_path / "study")
    edit(study_file, seeds=[3])
    with pytest.raises(UserError, match="holds another study"):
        StudyRun(load_study(study_file), tmp_path / "study")


def test_a_study_from_before_the_choice_of_bos_goes_on_with_bos(
    study_file: Path, tmp_path: Path
) -> None:
    def choice(file: Path) -> bool | None:
        run = StudyRun(load_study(file), tmp_path / "study")
        return trial(run.study, next(iter(run.study.settings)), 0).recipe.backbone.add_bos

    assert choice(study_file) is None
    written = tmp_path / "study" / "study.yaml"
    older = yaml.safe_load(written.read_text())
    del older["recipe"]["backbone"]["add_bos"]
    written.write_text(yaml.safe_dump(older))
    assert choice(study_file) is True
    backbone = older["recipe"]["backbone"] | {"add_bos": False}
    edit(study_file, recipe=older["recipe"] | {"backbone": backbone})
    with pytest.raises(UserError, match="holds another study"):
        choice(study_file)


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


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
def test_every_shipped_study_parses_and_is_found_by_name(path: Path, quick: bool) -> None:
    study = load_study(study_path(path.stem), quick=quick)
    for setting in study.settings:
        for seed in study.seeds:
            assert trial(study, setting, seed).recipe.seed == seed


def test_the_table_gives_mean_and_sample_deviation() -> None:
    def scores(*points: float) -> list[Score]:
        return [Score(f"t{i}", "cosine", p, 1, 1, 1, 1, False) for i, p in enumerate(points)]

    runs = [scores(1, 10), scores(2, 10), scores(3, 10)]
    trials = {
        f"a{i}": results.TrialResult("a", i, scores={"after stage 1": run})
        for i, run in enumerate(runs)
    }
    found = results.Results("x", trials, {"base": scores(5, 6)})
    assert found.score_table() == [
        ["setting", "runs", "t0", "t1", "mean"],
        ["base", "1", "5.0", "6.0", "5.5"],
        ["a", "3", "2.0 ± 1.0", "10.0 ± 0.0", "6.0 ± 0.5"],
    ]


def test_the_file_calls_the_trials_cells_as_0_1_did(tmp_path: Path) -> None:
    known = results.Results("x", {"a-seed0": results.TrialResult("a", 0, seconds=1.5)})
    known.write(tmp_path)
    written = json.loads((tmp_path / "results.json").read_text())
    assert list(written) == ["study", "cells", "baselines", "errors"]
    assert written["cells"]["a-seed0"]["seconds"] == 1.5
    assert results.read(tmp_path, "x") == known


@pytest.mark.parametrize("folder", RECORDED, ids=lambda folder: folder.name)
def test_results_of_0_1_are_read_and_written_back_the_same(folder: Path, tmp_path: Path) -> None:
    results.read(folder, folder.name).write(tmp_path)
    before, after = (
        json.loads((place / "results.json").read_text()) for place in (folder, tmp_path)
    )
    assert after == before
    assert (tmp_path / "results.md").read_text() == (folder / "results.md").read_text()


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


def test_a_study_with_another_plot_or_none_is_the_same_study(
    study_file: Path, tmp_path: Path
) -> None:
    StudyRun(load_study(study_file), tmp_path / "0.1")
    assert "plot" not in yaml.safe_load((tmp_path / "0.1" / "study.yaml").read_text())
    plotted = load_study(edit(study_file, plot={"x": "memory.tokens"}))
    StudyRun(plotted, tmp_path / "0.1")
    written = StudyRun(plotted, tmp_path / "new").study
    assert load_study(tmp_path / "new" / "study.yaml") == written
    StudyRun(load_study(edit(study_file, plot={"x": "pretext.steps"})), tmp_path / "new")
    StudyRun(load_study(edit(study_file, plot=None)), tmp_path / "new")


@pytest.mark.parametrize("folder", RECORDED, ids=lambda folder: folder.name)
def test_a_shipped_study_is_the_one_whose_results_are_recorded(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "study")
    StudyRun(load_study(study_path(folder.name)), tmp_path / "study")
