"""PrivacyPolicy: find out whether a clause of a privacy policy answers a question."""

import random

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskPairClassification

from llm2comp.data import catalog
from llm2comp.evaluation.tasks.offline import OfflineTask, metadata

SOURCE = "privacy-policy"
PAIRS = 2048
QUICK_PAIRS = 512
SEED = 42


class PrivacyPolicy(OfflineTask, AbsTaskPairClassification):
    """Pairs of a question about an app and a clause of its privacy policy; average precision.

    It takes 2,048 of 10,923 pairs (quick: 512), drawn with a fixed seed. Source: PrivacyQA
    (Ravichander et al., 2019), as in LegalBench.
    """

    metadata = metadata(
        "PrivacyPolicy",
        SOURCE,
        f"PrivacyQA, {PAIRS:,} of 10,923 pairs of question and clause (quick: {QUICK_PAIRS}).",
        type="PairClassification",
        category="t2t",
        main_score="max_ap",
        date=("2019-01-01", "2019-12-31"),
        domains=["Legal", "Written"],
        task_subtypes=["Question answering"],
        reference="https://arxiv.org/abs/2308.11462",
    )

    def read(self) -> None:
        """Draw the pairs. A pair is positive if the clause answers the question."""
        rows = list(catalog.rows(SOURCE))
        count = min(QUICK_PAIRS if self.quick else PAIRS, len(rows))
        rows = random.Random(SEED).sample(rows, count)
        pairs = Dataset.from_dict(
            {
                "sentence1": [row["question"] for row in rows],
                "sentence2": [row["context"] for row in rows],
                "labels": [int(row["label"] == "True") for row in rows],
            }
        )
        self.dataset = DatasetDict(test=pairs)
        self.samples = len(pairs)
        self.texts = 2 * self.samples
