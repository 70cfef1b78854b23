import json
from pathlib import Path
from typing import Any

import mteb
import pytest
from datasets import Dataset
from mteb.abstasks import AbsTaskSTS
from mteb.mocks import mock_tasks
from sentence_transformers import SentenceTransformer

from llm2comp.data import hub
from llm2comp.errors import UserError
from llm2comp.evaluation import baselines, runner, suites
from llm2comp.evaluation.results import paper_points
from llm2comp.evaluation.store import ResultStore
from llm2comp.evaluation.tasks.registry import TASKS

AVERAGES = [33.05, 40.46, 46.54, 43.55, 50.83, 43.54, 46.87, 35.79, 46.22, 52.49, 66.78]
"""Averages of the paper's rows, as the paper prints them."""


def test_the_offline_suite_is_every_task_here() -> None:
    assert [task.metadata.name for task in suites.choose("offline")] == list(TASKS)
    assert all(task.quick for task in suites.choose("offline", quick=True))


def test_the_paper_suite_is_mtebs_own_tasks_in_english() -> None:
    tasks = suites.choose("paper")
    assert [task.metadata.name for task in tasks] == list(suites.paper_tasks())
    assert len(tasks) == 14
    assert all(len(task.hf_subsets) == 1 for task in tasks)
    assert all(str(task.metadata.dataset["path"]).startswith("mteb/") for task in tasks)
    assert {about.type for about in suites.paper_tasks().values()} == set(suites.TYPES)


def test_the_papers_rows_have_the_papers_averages() -> None:
    means = [round(sum(row.values()) / 14, 2) for row in paper_points().values()]
    assert means == AVERAGES


@pytest.mark.parametrize(
    ("names", "quick", "message"),
    [
        ("STS17,STS99", False, "unknown task 'STS99'; did you mean"),
        ("Banking77Classification", True, "has no quick version; leave out --quick"),
        ("", False, "unknown task ''"),
    ],
)
def test_a_wrong_task_name_is_an_error(names: str, quick: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        suites.choose("offline", names.split(","), quick=quick)
    with pytest.raises(UserError, match="no quick version"):
        suites.choose("paper", quick=True)


def test_the_error_without_a_hub_names_the_offline_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(hub.HfApi, "dataset_info", unreachable)
    task = mteb.get_task("SciFact")
    with pytest.raises(UserError, match=r"SciFact needs mteb/scifact.*--suite offline"):
        suites.load(task)


class FromHub(AbsTaskSTS):
    """A task of mteb's whose data set lies in a local folder of the hub's layout."""

    metadata = mock_tasks.MockSTSTask.metadata.model_copy(update={"name": "FromHub"})


def test_a_hub_task_loads_from_a_folder_in_the_layout_of_the_hub(
    tiny_backbone: Path, tmp_path: Path, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"sentence1": one, "sentence2": other, "score": float(place % 6)}
        for place, (one, other) in enumerate(zip(sentences, sentences[::-1], strict=True))
    ]
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    Dataset.from_list(rows).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - split: test\n    path: data/test-*\n---\n"
    )
    monkeypatch.setattr(hub.HfApi, "dataset_info", lambda *_, **__: pytest.fail("the hub is asked"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    task = FromHub()
    task.metadata = task.metadata.model_copy(
        update={"dataset": {"path": str(folder), "revision": "1"}}
    )
    model = baselines.build("mean", tiny_backbone)
    (score,) = runner.evaluate(model, "tiny", [task])
    assert task.dataset["test"]["sentence1"] == [row["sentence1"] for row in rows]
    assert (score.task, score.texts, score.quick) == ("FromHub", 16, False)


@pytest.mark.parametrize(
    "name",
    [
        "MockSTSTask",
        "MockClassificationTask",
        "MockMultilingualClusteringFastTask",
        "MockMultilingualSTSTask",
        "MockPairClassificationTask",
        "MockRetrievalTask",
        "MockRerankingTask",
        "MockBitextMiningTask",
        "MockSummarizationTask",
    ],
)
def test_mock_tasks_of_mteb_run_and_are_stored(
    name: str, tiny_backbone: Path, tmp_path: Path
) -> None:
    model: SentenceTransformer = baselines.build("mean", tiny_backbone)
    expected = mteb.evaluate(
        model, getattr(mock_tasks, name)(), cache=None, show_progress_bar=False
    ).task_results[0]
    results = ResultStore(tmp_path)
    (score,) = runner.evaluate(model, "tiny", [getattr(mock_tasks, name)()], results)
    assert score.main_score == pytest.approx(100 * expected.get_score(), abs=1e-3)
    (kept,) = results.all()
    assert kept.score == score
    assert json.loads(json.dumps(kept.mteb))["task_name"] == score.task
