"""STSBenchmarkDev: the development set of STSBenchmark, for choosing settings."""

from datasets import DatasetDict
from mteb.abstasks import AbsTaskSTS
from mteb.tasks import STSBenchmarkSTS

from llm2comp.data import catalog
from llm2comp.evaluation.tasks.offline import OfflineTask
from llm2comp.evaluation.tasks.sts_benchmark import scored_pairs


class STSBenchmarkDev(OfflineTask, AbsTaskSTS):
    """The official development set without the pairs of STS17, 1,375 pairs; Spearman of cosine.

    125 pairs of the official set are left out, because they are also in STS17, which is a test set.
    The quick version has every third pair. Source: Cer et al., SemEval-2017 Task 1.
    """

    metadata = STSBenchmarkSTS.metadata.model_copy(
        update={
            "name": "STSBenchmarkDev",
            "dataset": {"path": "stsb", "revision": "semeval-2017"},
            "description": "STSBenchmark's development set less the pairs of STS17; when quick, "
            "every third pair.",
            "superseded_by": None,
        }
    )

    def read(self) -> None:
        """Take the development split, or a third of it."""
        rows = [
            row
            for row in catalog.rows("stsb")
            if row["split"] == "dev" and not row["file"].startswith("track5")
        ]
        pairs = scored_pairs(rows[:: 3 if self.quick else 1])
        self.dataset = DatasetDict(test=pairs)
        self.samples = len(pairs)
        self.texts = 2 * self.samples
