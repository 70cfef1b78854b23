"""The table of a study, and its files."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm2comp.evaluation.store import Score
from llm2comp.training.study import results

REPOSITORY = Path(__file__).parents[3]
RECORDED = sorted(path.parent for path in REPOSITORY.glob("results/*/results.json"))


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


def test_settings_may_have_different_stages(tmp_path: Path) -> None:
    row = [Score("t", "cosine", 1, 1, 1, 1, 1, False)]
    stages = {"short": ["after stage 1"], "long": ["after stage 1", "after UCL"]}
    trials = {
        f"{name}-seed0": results.TrialResult(name, 0, scores=dict.fromkeys(labels, row))
        for name, labels in stages.items()
    }
    found = results.Results("x", trials)
    found.write(tmp_path)
    assert [(one.setting, one.stage) for one in found.rows()] == [
        (name, label) for name, labels in stages.items() for label in labels
    ]


def test_settings_may_have_different_tasks(tmp_path: Path) -> None:
    def trial(name: str, seed: int, **points: float) -> results.TrialResult:
        row = [Score(task, "m", point, 1, 1, 1, 1, False) for task, point in points.items()]
        return results.TrialResult(name, seed, scores={"after stage 1": row})

    trials = [trial("one", 0, a=1, b=2), trial("one", 1, a=3), trial("other", 0, b=4, c=6)]
    found = results.Results("x", {f"{one.setting}-{one.seed}": one for one in trials})
    assert found.score_table() == [
        ["setting", "runs", "a", "b", "c", "mean"],
        ["one", "2", "2.0 ± 1.4", "2.0", "-", "-"],
        ["other", "1", "-", "4.0", "6.0", "-"],
    ]
    found.write(tmp_path)
    assert results.read(tmp_path, "x") == found


def test_the_file_calls_the_trials_cells_as_0_1_did(tmp_path: Path) -> None:
    known = results.Results("x", {"a-seed0": results.TrialResult("a", 0, seconds=1.5)})
    known.write(tmp_path)
    written = json.loads((tmp_path / "results.json").read_text())
    assert list(written) == ["study", "cells", "baselines", "errors"]
    assert written["cells"]["a-seed0"]["seconds"] == 1.5
    assert results.read(tmp_path, "x") == known


@pytest.mark.parametrize("folder", RECORDED, ids=lambda folder: folder.name)
def test_results_of_0_1_are_read_and_written_back_the_same(folder: Path, tmp_path: Path) -> None:
    """Scores may gain fields that 0.1 did not have; nothing else changes."""
    known = results.read(folder, folder.name)
    known.write(tmp_path)
    before, after = (
        json.loads((place / "results.json").read_text()) for place in (folder, tmp_path)
    )
    assert without_newer_fields(after) == without_newer_fields(before)
    assert results.read(tmp_path, folder.name) == known
    assert (tmp_path / "results.md").read_text() == (folder / "results.md").read_text()


def without_newer_fields(node: Any) -> Any:
    """Return a JSON tree without what scores have since 0.2: the size of the embeddings."""
    if isinstance(node, list):
        return [without_newer_fields(child) for child in node]
    if not isinstance(node, dict):
        return node
    newer = ("dim", "precision") if "main_score" in node else ()
    return {key: without_newer_fields(node[key]) for key in node if key not in newer}
