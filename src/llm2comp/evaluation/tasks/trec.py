"""TREC: classify questions by the type of their answer."""

from datasets import DatasetDict
from mteb.abstasks import AbsTaskClassification

from llm2comp.data import catalog
from llm2comp.evaluation.tasks.classes import labelled, trained_on
from llm2comp.evaluation.tasks.offline import OfflineTask, metadata

SOURCE = "trec"
TEST = 500
SEED = 42


class TREC(OfflineTask, AbsTaskClassification):
    """5,381 unique questions of 6 coarse types; accuracy.

    The file has no split, so the test set is a stratified sample of 500 questions with a fixed
    seed. The official test set has as many. mteb's protocol: ten logistic regressions, each on 8
    questions per type. The quick version is the whole set. Source: Li and Roth, 2002.
    """

    metadata = metadata(
        "TREC",
        SOURCE,
        f"TREC question types, {TEST} test questions of 5,381 (also when quick).",
        type="Classification",
        main_score="accuracy",
        date=("2002-01-01", "2002-12-31"),
        domains=["Written"],
        task_subtypes=["Topic classification"],
        reference="https://cogcomp.seas.upenn.edu/Data/QA/QC/",
    )

    def read(self) -> None:
        """Draw the test questions. The others are for training."""
        rows = list(catalog.rows(SOURCE))
        questions = labelled(rows, sorted({row["label"] for row in rows}))
        self.dataset = questions.train_test_split(TEST, stratify_by_column="label", seed=SEED)
        assert isinstance(self.dataset, DatasetDict)
        self.samples = TEST
        train = self.dataset["train"]
        self.texts = TEST + trained_on(train, self.samples_per_label, self.n_experiments)
