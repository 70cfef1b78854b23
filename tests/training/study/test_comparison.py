"""The paired bootstrap between the settings of a study, against a slow literal one."""

import json
import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from run_study import edit, go
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from llm2comp.errors import UserError
from llm2comp.evaluation import intervals
from llm2comp.evaluation.store import Score
from llm2comp.training.study import kept_items, results
from llm2comp.training.study.comparison import Comparison, Run, compare
from llm2comp.training.study.plan import load_study

SIZES = {"sts": ("spearman", 40), "pairs": ("average_precision", 30), "search": ("mean", 25)}
LITERAL = {
    "spearman": lambda predicted, gold: spearmanr(predicted, gold).statistic,
    "average_precision": lambda predicted, gold: average_precision_score(gold, predicted),
    "mean": lambda predicted, gold: np.mean(predicted),
}
STAGES = ("after stage 1", "after UCL")


def gold_of(task: str) -> np.ndarray:
    statistic, count = SIZES[task]
    values = np.random.default_rng(count).random(count)
    return (values > 0.5).astype(float) if statistic == "average_precision" else values


@pytest.fixture
def runs() -> tuple[dict[Run, list[Score]], dict[tuple[Run, str], dict[str, object]]]:
    """CTKD with seeds 0 to 2 and NLL with 1 to 3, after two stages, with a clustering task."""
    generator = np.random.default_rng(0)
    scores, items = {}, {}
    for setting, seeds in {"CTKD": (0, 1, 2), "NLL": (1, 2, 3)}.items():
        for seed in seeds:
            for stage in STAGES:
                run = Run(setting, seed, stage)
                scores[run] = [Score("clusters", "v", 10.0 * seed, 1, 1, 1, 1, False)]
                for task, (statistic, _) in SIZES.items():
                    gold = gold_of(task)
                    # Rounded, so that there are ties.
                    predicted = (gold + generator.normal(size=len(gold)) * (1 + seed)).round(1)
                    items[run, task] = {
                        "statistic": statistic,
                        "predicted": list(predicted),
                        "gold": list(gold),
                    }
                    point = 100 * LITERAL[statistic](predicted, gold)
                    scores[run].append(Score(task, "m", point, 1, 1, 1, 1, False))
    return scores, items


@pytest.mark.parametrize("name", LITERAL)
def test_a_statistic_of_many_resamples_is_that_of_each(name: str) -> None:
    generator = np.random.default_rng(1)
    predicted = generator.integers(0, 6, (50, 20)).astype(float)
    gold = generator.integers(0, 2, (50, 20)).astype(float)
    found = intervals.STATISTICS[name](predicted, gold)
    expected = [LITERAL[name](*row) for row in zip(predicted, gold, strict=True)]
    np.testing.assert_allclose(found, expected)


def test_intervals_are_those_of_a_literal_bootstrap(
    runs,  # noqa: ANN001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 100)
    scores, items = runs
    found = compare(scores, items, "CTKD")
    assert [(one.setting, one.stage, one.seeds) for one in found.differences] == [
        ("NLL", stage, [1, 2]) for stage in STAGES
    ]
    for one in found.differences:
        samples, points = {}, {}
        for place, task in enumerate(["clusters", *SIZES]):
            if task == "clusters":
                continue
            statistic, count = SIZES[task]
            gold, chosen = gold_of(task), np.random.default_rng(place)
            samples[task] = []
            for _ in range(intervals.RESAMPLES):
                rows = chosen.integers(0, count, count)
                gaps = []
                for seed in (1, 2):
                    a, b = (
                        np.array(items[Run(name, seed, one.stage), task]["predicted"])[rows]
                        for name in ("NLL", "CTKD")
                    )
                    gaps.append(
                        LITERAL[statistic](a, gold[rows]) - LITERAL[statistic](b, gold[rows])
                    )
                samples[task].append(100 * np.mean(gaps))
            low, high = np.percentile(samples[task], [2.5, 97.5])
            np.testing.assert_allclose(one.tasks[task].interval, (low, high))
            by_seed = [
                {s.task: s.main_score for s in scores[Run("NLL", seed, one.stage)]}[task]
                - {s.task: s.main_score for s in scores[Run("CTKD", seed, one.stage)]}[task]
                for seed in (1, 2)
            ]
            points[task] = np.mean(by_seed)
            assert one.tasks[task].points == pytest.approx(points[task])
        assert one.mean is not None
        assert one.mean.points == pytest.approx(np.mean(list(points.values())))
        low, high = np.percentile(np.mean(list(samples.values()), axis=0), [2.5, 97.5])
        np.testing.assert_allclose(one.mean.interval, (low, high))
        assert one.tasks["clusters"].interval is None  # 10 x seed in both
        assert one.tasks["clusters"].points == 0


def test_a_task_is_compared_for_all_or_for_none(runs) -> None:  # noqa: ANN001
    scores, items = runs
    items[Run("CTKD", 0, STAGES[0]), "sts"] = {}
    found = compare(scores, items, "CTKD")
    assert {one.tasks["sts"].interval for one in found.differences} == {None}
    assert "not in the mean: clusters, sts." in found.notes()
    points = [found.differences[0].tasks[task].points for task in ("pairs", "search")]
    assert found.differences[0].mean.points == pytest.approx(np.mean(points))
    assert compare(scores, {}, "CTKD").differences[0].mean is None


def test_other_items_are_refused(runs) -> None:  # noqa: ANN001
    scores, items = runs
    changed = items[Run("NLL", 3, STAGES[0]), "sts"]
    items[Run("NLL", 3, STAGES[0]), "sts"] = changed | {"gold": changed["gold"][::-1]}
    with pytest.raises(UserError, match="over different items"):
        compare(scores, items, "CTKD")


def test_the_table_names_difference_stage_and_seeds(runs) -> None:  # noqa: ANN001
    heading, first, second = compare(*runs, "CTKD").table()
    assert heading == ["difference", "seeds", "clusters", *SIZES, "mean"]
    assert first[:3] == ["NLL - CTKD, after stage 1", "2", "+0.0"]
    assert second[0] == "NLL - CTKD, after UCL"
    assert all(cell.endswith("]") for cell in first[3:])


def test_a_study_that_asks_for_it_compares_its_settings(
    study_file: Path, tmp_path: Path, sets: object, trained: list[str]
) -> None:
    out = tmp_path / "study"
    edit(study_file, tuning=None, seeds=[0], compare="CTKD")
    recipe = yaml.safe_load(study_file.read_text())["recipe"]
    recipe["evaluation"]["tasks"] = ["SQuADRetrieval", "TwentyNewsgroups"]
    found = go(edit(study_file, recipe=recipe), out)
    assert found.comparison is not None
    (one,) = found.comparison.differences
    assert one.setting == "MNTP"
    points = [found.trials[f"{name}-seed0"].scores["after stage 1"] for name in ("mntp", "ctkd")]
    for mine, theirs in zip(*points, strict=True):
        gap = mine.main_score - theirs.main_score
        assert one.tasks[mine.task].points == pytest.approx(gap)
    low, high = one.tasks["SQuADRetrieval"].interval
    assert low <= one.tasks["SQuADRetrieval"].points <= high
    assert low < high
    assert one.tasks["TwentyNewsgroups"].interval is None
    assert one.mean == one.tasks["SQuADRetrieval"]
    assert "| MNTP - CTKD | 1 |" in (out / "results.md").read_text()
    assert results.read(out, "tiny").comparison == found.comparison
    assert go(study_file, out).comparison == found.comparison
    # The items are kept beside the results, so another machine needs nothing more.
    shutil.rmtree(out / "scores")
    (other,) = go(edit(study_file, compare="MNTP"), out).comparison.differences
    assert other.setting == "CTKD"
    assert other.tasks["SQuADRetrieval"].interval == pytest.approx((-high, -low))
    # Scores of other runs are not compared with these.
    path = out / "results.json"
    text = path.read_text()
    written = json.loads(text)
    written["cells"]["ctkd-seed0"]["scores"]["after stage 1"][0]["main_score"] += 1
    path.write_text(json.dumps(written))
    (edited,) = go(edit(study_file, compare="CTKD"), out).comparison.differences
    assert edited.tasks["SQuADRetrieval"].interval is None
    # Without the items, what results.json says stays; another reference has no intervals then.
    path.write_text(text)
    (out / "items.json.xz").unlink()
    kept = go(edit(study_file, compare="MNTP"), out).comparison
    assert kept.reference == "MNTP"
    assert kept.differences == [other]
    (bare,) = go(edit(study_file, compare="CTKD"), out).comparison.differences
    assert bare.tasks["SQuADRetrieval"].interval is None
    assert go(edit(study_file, compare=None), out).comparison is None
    assert len(trained) == 2


def test_a_study_continued_on_another_machine_compares_as_one_that_was_not_stopped(
    study_file: Path, tmp_path: Path, sets: object, trained: list[str]
) -> None:
    recipe = yaml.safe_load(study_file.read_text())["recipe"]
    recipe["evaluation"]["tasks"] = ["SQuADRetrieval", "STS17"]
    edit(study_file, tuning=None, compare="CTKD", recipe=recipe)
    here, there = tmp_path / "here", tmp_path / "there"
    whole = go(study_file, here)
    there.mkdir()
    for name in ("study.yaml", "results.json", "items.json.xz"):
        shutil.copy(here / name, there)
    written = json.loads((there / "results.json").read_text())
    removed = [name for name in written["cells"] if name.endswith("seed1")]
    for name in removed:
        del written["cells"][name]
    (there / "results.json").write_text(json.dumps(written))
    items = {name: one for name, one in kept_items.read(there).items() if "seed1" not in name}
    kept_items.write(there, items)
    trained.clear()
    continued = go(study_file, there)
    assert sorted(trained) == sorted(removed)
    assert continued.comparison == whole.comparison
    (one,) = whole.comparison.differences
    assert one.seeds == [0, 1]
    assert all(gap.interval for gap in one.tasks.values())


def test_settings_are_compared_on_the_tasks_that_both_have(
    runs,  # noqa: ANN001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 50)
    scores, items = runs
    whole = compare(scores, items, "CTKD")
    for run in [run for run in scores if run.setting == "NLL"]:
        scores[Run("RC", run.seed, run.stage)] = scores[run]
        scores[run] = [score for score in scores[run] if score.task != "search"]
        for task in SIZES:
            items[Run("RC", run.seed, run.stage), task] = items[run, task]
    found = compare(scores, items, "CTKD")
    before = {(one.setting, one.stage): one for one in whole.differences}
    for one in found.differences:
        expected = before["NLL", one.stage].tasks
        missing = {"search"} if one.setting == "NLL" else set()
        assert one.tasks == {task: gap for task, gap in expected.items() if task not in missing}
        both = [one.tasks[task].points for task in ("sts", "pairs")]
        assert one.mean is not None
        assert one.mean.points == pytest.approx(np.mean(both)), "all rows have the same tasks"
    place = found.table()[0].index("search")
    assert [line[place] == "-" for line in found.table()[1:]] == [True, True, False, False]
    assert "Not in the mean, because not all settings have it: search." in found.notes()
    assert "not all settings" not in whole.notes()
    nothing_in_common = {
        run: row[:1] if run.setting == "CTKD" else row[1:] for run, row in scores.items()
    }
    assert all(not one.tasks for one in compare(nothing_in_common, items, "CTKD").differences)


@pytest.mark.parametrize("broken", [b"", b"not xz", lzma.compress(b"{")])
def test_items_that_cannot_be_read_are_named(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "items.json.xz").write_bytes(broken)
    with pytest.raises(UserError, match=r"items\.json\.xz cannot be read; remove it"):
        kept_items.read(tmp_path)


def test_the_reference_must_be_a_setting(study_file: Path) -> None:
    with pytest.raises(UserError, match="compare: there is no setting 'A'; .* CTKD, MNTP"):
        load_study(edit(study_file, compare="A"))
    quick = {"settings": {"other": []}}
    assert load_study(edit(study_file, compare="CTKD"), quick=True).compare == "CTKD"
    assert load_study(edit(study_file, quick=quick), quick=True).compare is None


def test_an_empty_comparison_has_a_table() -> None:
    assert Comparison("A", []).table() == [["difference", "seeds", "mean"]]
