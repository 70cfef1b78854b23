"""STSBenchmark: rank sentence pairs by similarity."""

from collections.abc import Iterable

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskSTS
from mteb.tasks import STSBenchmarkSTS

from llm2comp.data import catalog
from llm2comp.evaluation.tasks.offline import OfflineTask


class STSBenchmark(OfflineTask, AbsTaskSTS):
    """The official test set, 1,379 pairs; Spearman of cosine and human score.

    The quick version is the whole set. all-MiniLM-L6-v2 scores 82.03, as published. Source: Cer et
    al., SemEval-2017 Task 1.
    """

    metadata = STSBenchmarkSTS.metadata.model_copy(
        update={
            "dataset": {"path": "stsb", "revision": "semeval-2017"},
            "description": "STSBenchmark, official test set, 1,379 pairs (also when quick).",
            "superseded_by": None,
        }
    )

    def read(self) -> None:
        """Take the test split."""
        pairs = scored_pairs(row for row in catalog.rows("stsb") if row["split"] == "test")
        self.dataset = DatasetDict(test=pairs)
        self.samples = len(pairs)
        self.texts = 2 * self.samples


def scored_pairs(rows: Iterable[dict[str, str]]) -> Dataset:
    """Return the columns that mteb reads: sentence1, sentence2, score (0 to 5)."""
    return Dataset.from_list(
        [
            {
                "sentence1": row["sentence1"],
                "sentence2": row["sentence2"],
                "score": float(row["score"]),
            }
            for row in rows
        ]
    )
