import json
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from llm2comp.data import catalog
from llm2comp.evaluation import baselines, runner, suites
from llm2comp.evaluation.store import ResultStore, Score
from llm2comp.evaluation.tasks.registry import TASKS
from llm2comp.model.lineage import Lineage, StageRecord
from llm2comp.recipe import Recipe

Sets = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def model(tiny_backbone: Path) -> SentenceTransformer:
    built = baselines.build("weighted-mean", tiny_backbone)
    built.prompts = {"query": "Question: ", "document": ""}
    return built


def evaluate(
    model: SentenceTransformer, name: str, tasks: list[str], quick: bool = False, **options: Any
) -> list[Score]:
    return runner.evaluate(model, name, suites.tasks(tasks, quick=quick), **options)


def points(scores: list[Score]) -> list[float]:
    return [score.main_score for score in scores]


def test_scores_equal_a_literal_reference(model: SentenceTransformer, sets: Sets) -> None:
    scores = evaluate(model, "tiny", ["STSBenchmark", "STS17", "SQuADRetrieval"])

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


def test_results_are_stored_in_one_file_per_task(
    model: SentenceTransformer, sets: Sets, tmp_path: Path
) -> None:
    assert sets
    (score,) = evaluate(
        model, "runs/demo/model", ["STS17"], quick=True, results=ResultStore(tmp_path)
    )
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file == tmp_path / "runs__demo__model" / "STS17-quick.json"
    kept = json.loads(file.read_text())
    assert kept["model"] == "runs/demo/model"
    assert kept["score"]["main_score"] == score.main_score
    assert kept["prompts"] == {"query": "Question: ", "document": ""}
    assert kept["mteb"]["task_name"] == "STS17"
    assert kept["mteb"]["scores"]["test"][0]["hf_subset"] == "en-en"


def test_topics_that_share_no_word_are_told_apart(model: SentenceTransformer, sets: Sets) -> None:
    assert sets
    scores = evaluate(model, "tiny", ["TwentyNewsgroups", "PubMedJournals", "TREC", "R8"])
    groups, journals, trec, r8 = points(scores)
    assert min(groups, journals) > 20  # by chance: about 3
    assert min(trec, r8) > 60  # by chance: 25


def test_the_same_scores_as_with_mteb_alone(
    model: SentenceTransformer, tiny_backbone: Path, sets: Sets, tmp_path: Path
) -> None:
    """The folder in mteb's hands, as a model and by its path, and a second call in one process."""
    assert sets
    folder = tmp_path / "encoder"
    model.save_pretrained(str(folder))
    loaded = SentenceTransformer(str(folder))
    for name in ("STSBenchmark", "TwentyNewsgroups", "SQuADRetrieval"):
        ours = [points(evaluate(loaded, "tiny", [name])) for _ in range(2)]
        theirs = [
            mteb.evaluate(given, TASKS[name](), cache=None, show_progress_bar=False)
            for given in (loaded, SentenceTransformerEncoderWrapper(str(folder)))
        ]
        for result in theirs:
            expected = 100 * result.task_results[0].get_score()
            assert ours[0] == ours[1] == pytest.approx([expected], abs=1e-9)


def test_padding_side_does_not_change_scores(model: SentenceTransformer, sets: Sets) -> None:
    assert sets
    found = []
    before = model.tokenizer.padding_side
    try:
        for model.tokenizer.padding_side in ("left", "right"):
            found.append(points(evaluate(model, "tiny", list(TASKS))))
    finally:
        model.tokenizer.padding_side = before
    assert found[0] == pytest.approx(found[1], abs=0.01)


def test_an_instruction_is_put_before_all_texts_but_passages(
    model: SentenceTransformer, sets: Sets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    encode = model.encode

    def spy(texts: list[str], **options: Any) -> Any:
        assert options["prompt"] == ""
        seen.extend(texts)
        return encode(texts, **options)

    monkeypatch.setattr(model, "encode", spy)
    tasks = ["STS17", "SQuADRetrieval"]
    evaluate(
        model,
        "tiny",
        tasks,
        results=ResultStore(tmp_path),
        instructions=dict.fromkeys(tasks, "Find it"),
    )
    pairs = [row for row in sets["stsb"] if row["file"].startswith("track5")]
    assert seen[: len(pairs)] == [f"Find it:{row['sentence1']}\n" for row in pairs]
    retrieval = set(seen[2 * len(pairs) :])
    assert retrieval.issuperset(row["context"] for row in sets["squad-dev"])
    assert retrieval.issuperset(f"Find it:{row['question']}\n" for row in sets["squad-dev"])
    assert {one.instruction for one in ResultStore(tmp_path).all()} == {"Find it"}


def test_scoring_without_the_instructions_of_training_gives_a_warning(
    model: SentenceTransformer, sets: Sets, caplog: pytest.LogCaptureFixture
) -> None:
    assert sets
    stage = {"stage": "supervised", "data": [{"source": "x", "query_instruction": "Find it"}]}
    stage |= {"steps": 1, "batch_size": 1, "learning_rate": 1.0}
    plan = Recipe.model_validate({"name": "tiny", "stages": [stage]})
    record = StageRecord.of(plan.stages[0], causal=True, lora={})
    lineage = Lineage.start(plan, "memory").after(record)
    evaluate(model, "tiny", ["STS17", "SQuADRetrieval"], lineage=lineage)
    warnings = [record.getMessage() for record in caplog.records if "instruct" in record.msg]
    (warning,) = warnings  # the model's own query prompt serves retrieval
    assert "scored without them on STS17;" in warning
    caplog.clear()
    evaluate(model, "tiny", ["STS17"], lineage=lineage, instructions={"STS17": "Find it"})
    assert not [record for record in caplog.records if "scored without" in record.msg]


def test_a_stored_score_is_computed_again_only_on_request(
    model: SentenceTransformer, sets: Sets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sets
    calls: list[str] = []
    run = mteb.evaluate

    def spy(encoder: Any, task: Any, **options: Any) -> Any:
        calls.append(task.metadata.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(encoder, task, **options)

    monkeypatch.setattr(runner.mteb, "evaluate", spy)
    tasks, store = ["STS17", "TREC", "PrivacyPolicy"], ResultStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, "tiny", tasks, results=store)
    first = evaluate(model, "tiny", tasks, results=store)
    assert calls == ["STS17", "TREC", "TREC", "PrivacyPolicy"]
    assert evaluate(model, "tiny", tasks, results=store) == first
    assert len(calls) == 4
    again = evaluate(model, "tiny", tasks[:1], results=store, again=True)
    assert calls[4:] == ["STS17"]
    assert points(again) == points(first[:1])
    evaluate(model, "another", tasks[:1], results=store)
    evaluate(model, "tiny", tasks[:1], quick=True, results=store)
    assert calls[5:] == ["STS17", "STS17"]


@pytest.mark.slow
def test_published_scores_of_all_minilm() -> None:
    """The harness is right where it gives what the authors of mteb published."""
    model = SentenceTransformer(str(catalog.fetch("minilm")), device="cpu")
    scores = evaluate(model, "minilm", ["STSBenchmark", "STS17"])
    assert points(scores) == pytest.approx([82.03, 87.59], abs=0.01)
    assert [score.samples for score in scores] == [1379, 250]
