"""What the classification tasks have in common."""

from collections.abc import Sequence

from datasets import ClassLabel, Dataset, Features, Value


def labelled(rows: Sequence[dict[str, str]], names: Sequence[str]) -> Dataset:
    """Return the columns that mteb reads: text, and label as a number of ``names``."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
    columns = {"text": [row["text"] for row in rows], "label": [row["label"] for row in rows]}
    return Dataset.from_dict(columns, features=features)


def trained_on(train: Dataset, samples_per_label: int, experiments: int) -> int:
    """Return how many training texts mteb embeds at most: each experiment draws its own."""
    labels = len(train.features["label"].names)
    return min(len(train), samples_per_label * labels * experiments)
