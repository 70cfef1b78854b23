"""A study on the tiny backbone: resuming, failures, and stages that are shared."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from run_study import edit, go, kept
from typer.testing import CliRunner

from llm2comp.cli.app import app
from llm2comp.errors import UserError
from llm2comp.evaluation import runner
from llm2comp.model import backbone
from llm2comp.recipe import study_path
from llm2comp.training.monitoring.run_log import RunLog
from llm2comp.training.run_folder import read_events, read_recipe
from llm2comp.training.study import results
from llm2comp.training.study.plan import load_study, trial
from llm2comp.training.study.run import StudyRun

REPOSITORY = Path(__file__).parents[3]
RECORDED = sorted(path.parent for path in REPOSITORY.glob("results/*/results.json"))


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


def test_what_was_scored_before_a_stop_is_kept_with_its_items(
    study_file: Path, tmp_path: Path, sets: object, scored: list[str]
) -> None:
    edit(study_file, seeds=[0], settings={"CTKD": []})
    evaluate = runner.evaluate

    def stopping(model, name, tasks, store):  # noqa: ANN001, ANN202
        evaluate(model, name, tasks, store)
        raise KeyboardInterrupt

    for _ in range(3):  # after each value on the development task, then after the test set
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner, "evaluate", stopping)
            with pytest.raises(KeyboardInterrupt):
                go(study_file, tmp_path / "study")
        go_on = StudyRun(load_study(study_file), tmp_path / "study", Console(quiet=True))
        go_on._tune("CTKD")
    found = go(study_file, tmp_path / "study")
    assert sorted(scored) == sorted(["STSBenchmarkDev", "STSBenchmarkDev", "STS17", "STS17"])
    (chosen,) = (name for name, trial in found.trials.items() if trial.scores)
    assert {(r.model, r.score.task) for r in kept(tmp_path / "study")} == {
        ("last-token", "STS17"),
        (f"{chosen} after stage 1", "STS17"),
        *((f"{name} after stage 1", "STSBenchmarkDev") for name in found.trials),
    }
    (result,) = (
        r
        for r in kept(tmp_path / "study")
        if r.model == f"{chosen} after stage 1" and r.score.task == "STS17"
    )
    assert result.score == found.trials[chosen].scores["after stage 1"][0]
    assert len(result.items["predicted"]) == result.score.samples


def test_a_folder_from_before_the_store_and_the_values_of_a_setting_continues(
    study_file: Path, tmp_path: Path, sets: object, trained: list[str]
) -> None:
    edit(study_file, settings={"CTKD": []})
    whole = go(study_file, tmp_path / "study")
    shutil.rmtree(tmp_path / "study" / "scores")
    written = tmp_path / "study" / "study.yaml"
    older = yaml.safe_load(written.read_text())
    del older["tuning"]["values_of"]
    written.write_text(yaml.safe_dump(older))
    trained.clear()
    assert go(study_file, tmp_path / "study").score_table() == whole.score_table()
    assert trained == []
    edit(study_file, tuning={**older["tuning"], "values_of": {"CTKD": [0.02, 0.005]}})
    with pytest.raises(UserError, match="holds another study"):
        go(study_file, tmp_path / "study")


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
    ended = CliRunner().invoke(app, ["study", str(study_file), "--out", str(out)])
    assert ended.exit_code == 1, ended.output
    said = [line for line in ended.stderr.splitlines() if line.startswith("llm2comp: ")]
    assert [line.partition(" failed: ")[0] for line in said] == [
        "llm2comp: broken-seed0",
        "llm2comp: broken-seed1",
    ]


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


@pytest.mark.parametrize("half_line", [b"", b'{"stage": "pre'], ids=["killed", "power cut"])
def test_a_study_that_is_stopped_while_it_copies_a_stage_goes_on(
    two_stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half_line: bytes
) -> None:
    log = tmp_path / "second" / "cells" / "ctkd-seed0" / "run.jsonl"
    with monkeypatch.context() as patch:
        write = RunLog.write

        def stopped(self: RunLog, **event: object) -> None:
            write(self, **event)
            if event.get("done"):  # all lines of the stage are written, and its folder has no name
                raise KeyboardInterrupt

        patch.setattr(RunLog, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            go(two_stages, tmp_path / "second", reuse=[tmp_path / "first"])
    assert not (log.parent / "1-pretext").exists()
    log.write_bytes(log.read_bytes() + half_line)
    found = go(two_stages, tmp_path / "second", reuse=[tmp_path / "first"])
    assert not found.failed
    original = (tmp_path / "first" / "cells" / "ctkd-seed0" / "run.jsonl").read_bytes()
    assert log.read_bytes().startswith(original)
    assert stages_trained(tmp_path / "second") == ["pretext", "unsupervised"]


def test_a_trial_with_a_copied_stage_and_no_recipe_yet_gives_its_stages_to_no_other(
    study_file: Path, tmp_path: Path, sets: object
) -> None:
    """It was killed between the copy and its recipe, and another trial is first to be tried."""
    edit(study_file, tuning=None, seeds=[0, 1], settings={"CTKD": []})
    run = StudyRun(load_study(study_file), tmp_path / "study", Console(quiet=True))
    (tmp_path / "study" / "cells" / "ctkd-seed1" / "1-pretext").mkdir(parents=True)
    planned = trial(run.study, "CTKD", 0)
    assert run._reuse_stages(planned.recipe, run._folder(planned)) == planned.recipe


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
    study_file: Path, tiny_recipe: Path, tmp_path: Path, sets: object, scored: list[str]
) -> None:
    shared = yaml.safe_load(study_file.read_text())["recipe"]
    shared["stages"] += [
        s | {"steps": 2} for s in yaml.safe_load(tiny_recipe.read_text())["stages"][1:]
    ]
    settings = {f"steps = {n}": [f"supervised.steps={n}"] for n in (2, 3)}
    edit(study_file, tuning=None, seeds=[0], settings=settings, recipe=shared)
    found = go(study_file, tmp_path / "study")
    assert not found.failed
    assert len(scored) == 5  # the baseline, stage 1, UCL, and SCL twice
    short_kept, long_kept = (
        {r.model.removeprefix(trial): r for r in kept(tmp_path / "study") if trial in r.model}
        for trial in ("steps-=-2-seed0", "steps-=-3-seed0")
    )
    for label in (" after stage 1", " after UCL"):  # the other trial has its items too
        assert short_kept[label] == replace(long_kept[label], model=short_kept[label].model)
    assert short_kept[" after SCL"].key != long_kept[" after SCL"].key
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


def test_trials_share_stages_of_a_backbone_on_the_hub(
    study_file: Path,
    tiny_backbone: Path,
    tiny_recipe: Path,
    tmp_path: Path,
    sets: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run stores the commit that the hub had when it began, and the study has none."""
    snapshot = Path(shutil.copytree(tiny_backbone, tmp_path / ("0" * 40)))
    monkeypatch.setattr(backbone, "download_model", lambda *_, **__: snapshot)
    shared = yaml.safe_load(study_file.read_text())["recipe"]
    shared["stages"].append(yaml.safe_load(tiny_recipe.read_text())["stages"][1])
    shared |= {"backbone": {"name": "me/tiny"}, "evaluation": {"tasks": ["STS17"]}}
    settings = {f"steps = {n}": [f"unsupervised.steps={n}"] for n in (1, 2)}
    edit(study_file, tuning=None, seeds=[0], settings=settings, recipe=shared)
    assert not go(study_file, tmp_path / "study").failed
    runs = sorted((tmp_path / "study" / "cells").iterdir())
    one, other = ([e for e in read_events(run) if e["stage"] == "pretext"] for run in runs)
    assert one == other  # with the seconds of the first
    assert [read_recipe(run).backbone.revision for run in runs] == [snapshot.name] * 2


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
    """But for its tasks: it may score more of them."""
    shutil.copytree(folder, tmp_path / "study")
    shipped = yaml.safe_load(study_path(folder.name).read_text())
    recorded = yaml.safe_load((folder / "study.yaml").read_text())
    assert recorded.get("plot") == shipped.get("plot")  # otherwise it would draw another figure
    tasks = recorded["recipe"]["evaluation"]["tasks"]
    assert set(tasks) <= set(shipped["recipe"]["evaluation"]["tasks"])
    shipped["recipe"]["evaluation"]["tasks"] = tasks
    (tmp_path / "shipped.yaml").write_text(yaml.safe_dump(shipped, sort_keys=False))
    StudyRun(load_study(tmp_path / "shipped.yaml"), tmp_path / "study")
