"""R8: classify Reuters news by topic."""

from datasets import DatasetDict
from mteb.abstasks import AbsTaskClassification

from llm2comp.data import catalog
from llm2comp.evaluation.tasks.classes import labelled, trained_on
from llm2comp.evaluation.tasks.offline import OfflineTask, cut, metadata

SOURCE = "r8"
QUICK_TEST = 500
QUICK_CHARACTERS = 160
SEED = 42


class R8(OfflineTask, AbsTaskClassification):
    """Reuters-21578, the 8 most common topics, 5,485 train and 2,189 test items; accuracy.

    mteb's protocol: ten logistic regressions, each on 8 items per topic. The quick version has 500
    test items, a stratified sample with a fixed seed, and truncates each item after the last word
    within its first 160 characters. Source: Lewis, 1997; subset by Cachopo, 2007.
    """

    metadata = metadata(
        "R8",
        SOURCE,
        "Reuters-21578 R8, 2,189 test items; when quick, the first "
        f"{QUICK_CHARACTERS} characters of {QUICK_TEST}.",
        type="Classification",
        main_score="accuracy",
        date=("1987-01-01", "1987-12-31"),
        domains=["News", "Written"],
        task_subtypes=["Topic classification"],
        reference="https://kdd.ics.uci.edu/databases/reuters21578/reuters21578.html",
    )

    def read(self) -> None:
        """Take the official split, or the sample of the quick version."""
        rows = list(catalog.rows(SOURCE))
        if self.quick:
            rows = [row | {"text": cut(row["text"], QUICK_CHARACTERS)} for row in rows]
        names = sorted({row["label"] for row in rows})
        train, test = (
            labelled([row for row in rows if row["split"] == split], names)
            for split in ("train", "test")
        )
        if self.quick:
            test = test.train_test_split(QUICK_TEST, stratify_by_column="label", seed=SEED)["test"]
        self.dataset = DatasetDict(train=train, test=test)
        self.samples = len(test)
        self.texts = len(test) + trained_on(train, self.samples_per_label, self.n_experiments)
