"""STS17, English: rank sentence pairs by similarity."""

from datasets import DatasetDict
from mteb.abstasks import AbsTaskSTS
from mteb.tasks import STS17Crosslingual

from llm2comp.data import catalog
from llm2comp.evaluation.tasks.offline import OfflineTask
from llm2comp.evaluation.tasks.sts_benchmark import scored_pairs


class STS17(OfflineTask, AbsTaskSTS):
    """The English pairs of track 5, 250 pairs; Spearman of cosine and human score.

    The pairs are spread over the development and test files of STS-B. Do not tune on them. The
    quick version is the whole set. all-MiniLM-L6-v2 scores 87.59, as published. Source: Cer et al.,
    SemEval-2017 Task 1.
    """

    metadata = STS17Crosslingual.metadata.model_copy(
        update={
            "dataset": {"path": "stsb", "revision": "semeval-2017"},
            "description": "STS17, English track (en-en), 250 pairs (also when quick).",
            "eval_langs": {"en-en": ["eng-Latn"]},
        }
    )

    def read(self) -> None:
        """Take the rows of track 5 from all splits of STS-B."""
        rows = (row for row in catalog.rows("stsb") if row["file"].startswith("track5"))
        pairs = scored_pairs(rows)
        self.dataset = {"en-en": DatasetDict(test=pairs)}
        self.samples = len(pairs)
        self.texts = 2 * self.samples
