from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTask, AbsTaskPairClassification, AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.mocks import mock_tasks

from llm2comp.errors import UserError
from llm2comp.evaluation import baselines, intervals, runner, suites
from llm2comp.evaluation.results import Leaderboard
from llm2comp.evaluation.store import ResultStore

Sets = dict[str, list[dict[str, str]]]
OVER_ITEMS = ["STSBenchmark", "STS17", "TREC", "R8", "SQuADRetrieval", "PrivacyPolicy"]


def test_the_items_statistic_is_the_main_score(
    tiny_backbone: Path, sets: Sets, tmp_path: Path
) -> None:
    assert sets
    model = baselines.build("weighted-mean", tiny_backbone)
    runner.evaluate(model, "tiny", suites.choose("offline"), ResultStore(tmp_path))
    kept = {one.score.task: one for one in ResultStore(tmp_path).all()}
    assert [name for name, one in kept.items() if one.items] == sorted(OVER_ITEMS)
    for name in OVER_ITEMS:
        items, score = kept[name].items, kept[name].score
        statistic = intervals.STATISTICS[items["statistic"]]
        found = 100 * statistic(np.array(items["predicted"]), np.array(items["gold"]))
        # mteb rounds retrieval scores to five decimals.
        assert found == pytest.approx(score.main_score, abs=1e-3), name
        assert len(items["predicted"]) == len(items["gold"]) == score.samples


def test_the_interval_of_a_mean_is_that_of_the_formula() -> None:
    """Of a difference with mean 0.1 and deviation 1 over 2,500 items: 10 +- 196 / 50 percent."""
    noise = np.random.default_rng(0).standard_normal(2500)
    noise = (noise - noise.mean()) / noise.std()
    shared = np.random.default_rng(1).standard_normal(2500)  # of the items, not of the models
    one = {"statistic": "mean", "predicted": list(shared + 0.1 + noise), "gold": [0.0] * 2500}
    other = {"statistic": "mean", "predicted": list(shared), "gold": [0.0] * 2500}
    low, high = intervals.difference(one, other)
    assert low == pytest.approx(10 - 3.92, abs=0.3)
    assert high == pytest.approx(10 + 3.92, abs=0.3)
    assert intervals.difference(one, one) == (0, 0)
    assert intervals.difference(one, other) == (low, high)


def test_different_items_do_not_compare() -> None:
    one = {"statistic": "spearman", "predicted": [1.0, 2.0], "gold": [1.0, 2.0]}
    with pytest.raises(UserError, match="over different items"):
        intervals.difference(one, one | {"gold": [1.0, 3.0]})


class Paraphrases(AbsTaskPairClassification):
    """Pairs in one row whose columns are lists, as in old data sets, and labels of another name."""

    metadata = mock_tasks.MockPairClassificationTask.metadata.model_copy(
        update={"name": "Paraphrases", "main_score": "max_ap"}
    )
    label_column_name = "same"

    def load_data(self, **_: Any) -> None:
        words = ["river", "sea", "compiler", "museum", "whale", "garden"]
        row = {
            "sentence1": [f"the {word} and the {words[i - 1]}" for i, word in enumerate(words)],
            "sentence2": [f"a {word}, a {words[i - 2]}" for i, word in enumerate(words)],
            "same": [1, 0, 0, 1, 0, 1],
        }
        self.dataset = {"test": Dataset.from_list([row])}
        self.data_loaded = True


class Duplicates(AbsTaskRetrieval):
    """Every query is itself in the corpus, and is not scored as its own answer."""

    metadata = mock_tasks.MockRetrievalTask.metadata.model_copy(
        update={"name": "Duplicates", "eval_splits": ["test"]}
    )
    ignore_identical_ids = True

    def load_data(self, **_: Any) -> None:
        texts = {"a": "whales breathe air", "b": "how do whales breathe", "c": "tomatoes"}
        corpus = [{"id": name, "title": "", "text": text} for name, text in texts.items()]
        split = RetrievalSplitData(
            corpus=Dataset.from_list(corpus),
            queries=Dataset.from_list([{"id": n, "text": texts[n]} for n in "ab"]),
            relevant_docs={"a": {"b": 1}, "b": {"a": 1}},
            top_ranked=None,
        )
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class Toxic(mock_tasks.MockClassificationTask):
    """Classes in a column of another name."""

    metadata = mock_tasks.MockClassificationTask.metadata.model_copy(update={"name": "Toxic"})
    label_column_name = "toxic"

    def load_data(self, **options: Any) -> None:
        super().load_data(**options)
        self.dataset = self.dataset.rename_column("label", "toxic")


class Moods(mock_tasks.MockClassificationTask):
    """Labels that are texts."""

    metadata = mock_tasks.MockClassificationTask.metadata.model_copy(update={"name": "Moods"})

    def load_data(self, **_: Any) -> None:
        rows = [{"text": f"it is {mood}", "label": mood} for mood in ("good", "bad", "neutral")]
        self.dataset = DatasetDict({name: Dataset.from_list(rows) for name in ("train", "test")})
        self.data_loaded = True


class Folds(mock_tasks.MockClassificationTask):
    """One set that is divided five times."""

    metadata = mock_tasks.MockClassificationTask.metadata.model_copy(
        update={"name": "Folds", "eval_splits": ["train"]}
    )
    is_cross_validation = True

    def load_data(self, **_: Any) -> None:
        rows = [{"text": f"text {i} of {i % 2}", "label": i % 2} for i in range(12)]
        self.dataset = DatasetDict({"train": Dataset.from_list(rows)})
        self.data_loaded = True


class Several(mock_tasks.MockMultilabelClassification):
    """One label or two per text."""

    metadata = mock_tasks.MockMultilabelClassification.metadata.model_copy(
        update={"name": "Several", "main_score": "accuracy"}
    )

    def load_data(self, **options: Any) -> None:
        super().load_data(**options)
        self.dataset = self.dataset.map(
            lambda row, i: {"label": row["label"][: 1 + i % 2]}, with_indices=True
        )


class ByF1(mock_tasks.MockClassificationTask):
    """The score is no mean over texts."""

    metadata = mock_tasks.MockClassificationTask.metadata.model_copy(
        update={"name": "ByF1", "main_score": "f1"}
    )


@pytest.mark.parametrize(
    ("task", "statistic"),
    [
        (Paraphrases, "average_precision"),
        (Duplicates, "mean"),
        (Toxic, "mean"),
        (Moods, "mean"),
        (Folds, None),
        (Several, None),
        (mock_tasks.MockMultilabelClassification, None),
        (ByF1, None),
        (mock_tasks.MockPairClassificationTask, None),
    ],
)
def test_other_tasks_of_mteb_have_items_that_explain_the_score_or_none(
    task: type[AbsTask], statistic: str | None, tiny_backbone: Path, tmp_path: Path
) -> None:
    model = baselines.build("weighted-mean", tiny_backbone)
    results = ResultStore(tmp_path)
    (score,) = runner.evaluate(model, "tiny", [task()], results)
    (kept,) = results.all()
    assert kept.items.get("statistic") == statistic
    if statistic:
        assert intervals.score(kept.items) == pytest.approx(score.main_score, abs=1e-3)


def test_items_of_another_score_give_no_interval(
    tiny_backbone: Path, sets: Sets, tmp_path: Path
) -> None:
    """Older versions stored such items."""
    assert sets
    results = ResultStore(tmp_path)
    for name in ("mean", "last-token"):
        runner.evaluate(
            baselines.build(name, tiny_backbone), name, suites.tasks(["STS17"]), results
        )
    assert "[" in Leaderboard.of(results.all()).interval_cells("mean")[1][1]
    for one in results.all():
        other = replace(one.score, main_score=one.score.main_score + 1)
        results.save(replace(one, score=other))
    assert "[" not in Leaderboard.of(results.all()).interval_cells("mean")[1][1]
