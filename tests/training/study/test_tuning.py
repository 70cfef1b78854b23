"""The budget of a setting: the values that it tries, and what judges them."""

from pathlib import Path

import pytest
import yaml
from run_study import edit, go

from llm2comp.evaluation.store import Score
from llm2comp.training.study import results
from llm2comp.training.study.plan import Trial, load_study
from llm2comp.training.study.run import StudyRun


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


def test_a_setting_may_try_its_own_values(study_file: Path, tmp_path: Path, sets: object) -> None:
    tuning = {
        "key": "pretext.learning_rate",
        "values": [0.01, 0.001],
        "values_of": {"MNTP": [0.02, 0.005]},
    }
    edit(study_file, seeds=[0], tuning=tuning)
    found = go(study_file, tmp_path / "study")
    tried = [(trial.setting, trial.value) for trial in found.trials.values()]
    assert tried == [("CTKD", 0.01), ("CTKD", 0.001), ("MNTP", 0.02), ("MNTP", 0.005)]
    for name, one in found.trials.items():
        run = yaml.safe_load((tmp_path / "study" / "cells" / name / "recipe.yaml").read_text())
        assert run["stages"][0]["learning_rate"] == one.value
    assert len([trial for trial in found.trials.values() if trial.scores]) == 2
    assert all(trial.development for trial in found.trials.values())


def test_tuning_judges_the_last_of_three_stages_and_shares_only_equal_stages(
    study_file: Path, tiny_recipe: Path, tmp_path: Path, sets: object
) -> None:
    shared = yaml.safe_load(study_file.read_text())["recipe"]
    shared["stages"] += [
        s | {"steps": 2} for s in yaml.safe_load(tiny_recipe.read_text())["stages"][1:]
    ]
    shared["evaluation"]["tasks"] = ["STSBenchmarkDev"]
    edit(study_file, seeds=[0], settings={"CTKD": []}, recipe=shared)
    found = go(study_file, tmp_path / "first")
    (chosen,) = (trial for trial in found.trials.values() if trial.scores)
    # The seconds tell the scores apart; that of the last stage was stored and is taken again.
    assert chosen.development == chosen.scores["after SCL"]
    assert chosen.development not in (chosen.scores["after UCL"], chosen.scores["after stage 1"])
    # A key of stage 1 changes stage 1, so the trials share nothing.
    first, other = (tmp_path / "first" / "cells" / name for name in found.trials)
    for stage in ("1-pretext", "2-unsupervised", "3-supervised"):
        assert (first / stage / "model.safetensors").read_bytes() != (
            other / stage / "model.safetensors"
        ).read_bytes()
    # A key of stage 3 leaves stages 1 and 2 as they are.
    tuning = {"key": "supervised.learning_rate", "values": [0.01, 0.001]}
    edit(study_file, tuning=tuning)
    found = go(study_file, tmp_path / "second")
    first, other = (tmp_path / "second" / "cells" / name for name in found.trials)
    equal = [
        (first / stage / "model.safetensors").read_bytes()
        == (other / stage / "model.safetensors").read_bytes()
        for stage in ("1-pretext", "2-unsupervised", "3-supervised")
    ]
    assert equal == [True, True, False]


def test_a_value_that_fails_at_first_and_wins_later_has_the_row_alone(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = yaml.safe_load(study_file.read_text())["recipe"] | {"evaluation": {"tasks": ["STS17"]}}
    edit(study_file, settings={"CTKD": []}, recipe=recipe)
    full_disk, left = True, []

    def points(planned: Trial) -> list[Score]:  # the smaller value is the better one
        return [Score("STS17", "cosine", 1 / planned.value, 1, 1, 1, 1, quick=False)]

    def train(run: StudyRun, planned: Trial, result: results.TrialResult) -> None:
        if full_disk and planned.value == 0.001:
            raise OSError("No space left on device")
        if not result.seconds:
            left.append(int(run._title(planned).split(": ")[1].split()[0]))
        result.seconds = 1.0

    def judge(run: StudyRun, planned: Trial, result: results.TrialResult) -> None:
        train(run, planned, result)
        result.development = points(planned)

    def score(run: StudyRun, planned: Trial, result: results.TrialResult) -> None:
        train(run, planned, result)
        result.scores = {"after stage 1": points(planned)}

    monkeypatch.setattr(StudyRun, "_judge", judge)
    monkeypatch.setattr(StudyRun, "_score", score)
    out, heading = tmp_path / "study", ["setting", "runs", "STS17", "mean"]
    first = go(study_file, out)
    assert first.score_table() == [heading, ["CTKD", "2", "100.0 ± 0.0", "100.0 ± 0.0"]]
    full_disk = False
    expected = [heading, ["CTKD", "2", "1000.0 ± 0.0", "1000.0 ± 0.0"]]
    again = go(study_file, out)
    assert again.score_table() == expected
    assert results.read(out, "tiny") == again
    assert min(left) == 1
    # A folder in which an earlier version left both is put right, although nothing is to be done.
    for trial in again.trials.values():
        trial.scores = trial.scores or {"after stage 1": trial.development}
    again.write(out)
    go(study_file, out)
    assert results.read(out, "tiny").score_table() == expected
