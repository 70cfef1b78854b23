"""Functions that the classification tasks share."""

from collections.abc import Sequence

from datasets import ClassLabel, Dataset, Features, Value


def labelled(rows: Sequence[dict[str, str]], names: Sequence[str]) -> Dataset:
    """Return a dataset with the columns that mteb reads.

    Args:
        rows: rows with `text` and `label`.
        names: names of the labels; the column `label` has their indices.
    """
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
    columns = {"text": [row["text"] for row in rows], "label": [row["label"] for row in rows]}
    return Dataset.from_dict(columns, features=features)


def trained_on(train: Dataset, samples_per_label: int, experiments: int) -> int:
    """Return the maximum number of training texts that mteb encodes.

    Args:
        train: the training split.
        samples_per_label: number of texts per label that an experiment draws.
        experiments: number of experiments. Each draws its own texts.
    """
    labels = len(train.features["label"].names)
    return min(len(train), samples_per_label * labels * experiments)
