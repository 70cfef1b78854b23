"""The scores in a published card: MTEB's tasks alone, of this encoder alone, as it is."""

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import llm2comp
from llm2comp.evaluation.store import ResultStore, Score, TaskResult
from llm2comp.model import released
from llm2comp.model.lineage import Lineage
from llm2comp.publishing.card import card_on_hub
from llm2comp.publishing.scores import mteb_results
from llm2comp.training.run_folder import read_scores, write_scores


def score(task: str, value: float, **others: object) -> Score:
    whole = Score(task, "cosine_spearman", value, 1.0, 10, 10.0, 5, quick=False, dim=32)
    return replace(whole, **others)  # type: ignore[arg-type]


def stored(folder: Path, of: Score, **others: object) -> TaskResult:
    result = TaskResult(
        model=str(folder),
        score=of,
        type="sts",
        instruction="",
        prompts={},
        key="",
        versions={},
        lineage=Lineage.read(folder),
        mteb={"scores": {"test": [{"hf_subset": "default", "main_score": of.main_score / 100}]}},
    )
    return replace(result, **others)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


def values(folder: Path, store: ResultStore) -> dict[str, float]:
    found = mteb_results(str(folder), folder, Lineage.read(folder), store)
    return {result.dataset_name: result.metric_value for result in found}


def test_the_card_has_the_scores_as_the_hub_reads_them(folder: Path, store: ResultStore) -> None:
    store.save(stored(folder, score("STSBenchmark", 77.02317)))
    results = mteb_results(str(folder), folder, Lineage.read(folder), store)
    card = card_on_hub(folder / "README.md", "me/first", None, results)
    data = ModelCard(str(card)).data
    (read,) = data.eval_results
    assert read == results[0]
    assert (read.task_type, read.metric_type, read.metric_value) == (
        "STS", "cosine_spearman", 77.0232,
    )  # fmt: skip
    assert (read.dataset_type, read.dataset_config) == ("mteb/stsbenchmark-sts", "default")
    assert read.dataset_split == "test"
    assert read.dataset_revision is not None
    assert len(read.dataset_revision) == 40
    assert data.model_name == "first"
    assert "mteb" in data.tags
    again = card_on_hub(folder / "README.md", "me/first", None, results)
    assert str(again) == str(card)


def test_a_score_on_the_same_data_is_replaced_and_others_are_kept(
    folder: Path, store: ResultStore
) -> None:
    store.save(stored(folder, score("STSBenchmark", 60.0)))
    lineage = Lineage.read(folder)
    old = mteb_results(str(folder), folder, lineage, store)
    mine = replace(old[0], dataset_type="me/mine", dataset_name="Mine")
    card = card_on_hub(folder / "README.md", "me/first", None, [*old, mine])
    (folder / "README.md").write_text(str(card))
    new = [replace(old[0], metric_value=61.0)]
    data = card_on_hub(folder / "README.md", "me/first", None, new).data
    assert {r.dataset_name: r.metric_value for r in data.eval_results} == {
        "Mine": 60.0,
        "MTEB STSBenchmark": 61.0,
    }


def test_scores_of_the_run_count_and_those_of_evaluate_replace_them(
    run: Path, folder: Path, store: ResultStore
) -> None:
    scores = [
        score("STSBenchmark", 50.0, quick=True),  # quick is the whole set
        score("STS17", 40.0, quick=True),
        score("SQuADRetrieval", 30.0, quick=True),  # not mteb's data
    ]
    rows = {"prompteol": [score("STS17", 1.0)], "after stage 1": scores}
    write_scores(run, rows)
    assert values(folder, store) == {"MTEB STS17": 40.0, "MTEB STSBenchmark": 50.0}
    store.save(stored(folder, score("STS17", 41.0)))
    assert values(folder, store) == {"MTEB STS17": 41.0, "MTEB STSBenchmark": 50.0}
    assert values(folder.rename(run / "elsewhere"), store) == {"MTEB STS17": 41.0}


@pytest.mark.parametrize(
    ("task", "of_score", "of_result"),
    [
        ("STS17", {"dim": 16}, {}),
        ("STS17", {"precision": "int8"}, {}),
        ("STS17", {}, {"instruction": "Find: "}),
        ("STS17", {}, {"model": "first, merged at 0.8"}),
        ("STS17", {}, {"model": "first@2 tokens"}),
        ("SciFact", {}, {"model": "first, k vectors"}),
        ("STS17", {}, {"lineage": None}),
        ("TREC", {}, {}),
        ("STSBenchmarkDev", {}, {}),
        ("mine.jsonl@01234567", {}, {}),
    ],
)
def test_other_scores_are_left_out(
    folder: Path, store: ResultStore, task: str, of_score: dict[str, object],
    of_result: dict[str, object],
) -> None:  # fmt: skip
    store.save(stored(folder, score(task, 70.0, **of_score), **of_result))
    assert values(folder, store) == {}


def test_scores_of_another_encoder_are_left_out(folder: Path, store: ResultStore) -> None:
    lineage = Lineage.read(folder)
    other = lineage.model_copy(update={"seed": lineage.seed + 1})
    store.save(stored(folder, score("STS17", 70.0), lineage=other))
    assert values(folder, store) == {}


def test_the_mean_over_several_subsets_has_no_subset(folder: Path, store: ResultStore) -> None:
    rows = [{"hf_subset": subset, "main_score": 0.7} for subset in ("en", "de")]
    result = stored(folder, score("STS22.v2", 70.0), mteb={"scores": {"test": rows}})
    store.save(result)
    (found,) = mteb_results(str(folder), folder, Lineage.read(folder), store)
    assert found.dataset_config is None
    store.save(replace(result, mteb={"scores": {"test": rows[:1]}}))
    (found,) = mteb_results(str(folder), folder, Lineage.read(folder), store)
    assert found.dataset_config == "en"


def test_the_scores_of_a_release_are_known(store: ResultStore, folder: Path) -> None:
    lineage = Lineage.read(folder)
    last = lineage.stages[-1].model_copy(update={"stage": "supervised"})
    lineage = lineage.model_copy(update={"stages": [last]})
    found = mteb_results("smollm2-135m-llm2comp", folder, lineage, store)
    rows = read_scores(released.RELEASED / "smollm2-135m-llm2comp")["after SCL"]
    recorded = {f"MTEB {row.task}": pytest.approx(row.main_score, abs=1e-4) for row in rows}
    assert {r.dataset_name: r.metric_value for r in found} == {
        name: recorded[name] for name in ("MTEB STS17", "MTEB STSBenchmark")
    }
    assert "push" in llm2comp.__all__
