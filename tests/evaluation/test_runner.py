import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from llm2comp import baselines
from llm2comp.data import catalog
from llm2comp.errors import UserError
from llm2comp.evaluation.runner import Score, evaluate
from llm2comp.evaluation.tasks import TASKS

Sets = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def model(tiny_backbone: Path) -> SentenceTransformer:
    built = baselines.build("weighted-mean", tiny_backbone)
    built.prompts = {"query": "Question: ", "document": ""}
    return built


def points(scores: list[Score]) -> list[float]:
    return [score.main_score for score in scores]


def test_scores_equal_a_literal_reference(model: SentenceTransformer, sets: Sets) -> None:
    scores = evaluate(model, "tiny", list(TASKS))
    assert [score.task for score in scores] == list(TASKS)

    def spearman(rows: list[dict[str, str]]) -> float:
        one = model.encode([row["sentence1"] for row in rows])
        other = model.encode([row["sentence2"] for row in rows])
        human = [float(row["score"]) for row in rows]
        return 100 * float(spearmanr((one * other).sum(1), human).statistic)

    test = [row for row in sets["stsb"] if row["split"] == "test"]
    track5 = [row for row in sets["stsb"] if row["file"].startswith("track5")]
    squad = sets["squad-dev"]
    contexts = list(dict.fromkeys(row["context"] for row in squad))
    passages = model.encode(contexts)
    gains = []
    for row in squad:
        similarity = passages @ model.encode(f"Question: {row['question']}")
        rank = int((similarity > similarity[contexts.index(row["context"])]).sum())
        gains.append(1 / np.log2(rank + 2) if rank < 10 else 0)
    expected = [spearman(test), spearman(track5), 100 * float(np.mean(gains))]
    # mteb rounds retrieval scores to five decimals.
    assert points(scores) == pytest.approx(expected, abs=1e-3)


def test_batch_size_does_not_change_scores(model: SentenceTransformer, sets: Sets) -> None:
    assert sets
    one, other = (evaluate(model, "tiny", list(TASKS), batch_size=size) for size in (1, 64))
    assert points(one) == pytest.approx(points(other), abs=1e-3)


def test_results_are_kept_one_file_a_task(
    model: SentenceTransformer, sets: Sets, tmp_path: Path
) -> None:
    assert sets
    (score,) = evaluate(model, "runs/demo/model", ["STS17"], quick=True, output=tmp_path)
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file == tmp_path / "runs__demo__model" / "STS17-quick.json"
    kept = json.loads(file.read_text())
    assert kept["model"] == "runs/demo/model"
    assert kept["main_score"] == score.main_score
    assert kept["prompts"] == {"query": "Question: ", "document": ""}
    assert kept["mteb"]["task_name"] == "STS17"
    assert kept["mteb"]["scores"]["test"][0]["hf_subset"] == "en-en"


def test_an_unknown_task_is_refused_before_anything_runs(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "rows", lambda name: pytest.fail(f"{name} was read"))
    with pytest.raises(UserError, match="unknown task 'STS99'; the tasks are STSBenchmark, STS17"):
        evaluate(model, "tiny", ["STS17", "STS99"])
    with pytest.raises(UserError, match="no task named"):
        evaluate(model, "tiny", [])


@pytest.mark.slow
def test_published_scores_of_all_minilm() -> None:
    """The harness is right where it gives what the authors of mteb published."""
    model = SentenceTransformer(str(catalog.fetch("minilm")), device="cpu")
    scores = evaluate(model, "minilm", ["STSBenchmark", "STS17"])
    assert points(scores) == pytest.approx([82.03, 87.59], abs=0.01)
    assert [score.samples for score in scores] == [1379, 250]
