"""How many rows fit into batches that hold each text once."""

from array import array
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm2comp.errors import counted

FILLED = 0.5
"""A stage is refused if less than this share of its rows fits into its batches."""
WELL_FILLED = 0.9
"""There is a warning if less than this share does."""


class Fit(NamedTuple):
    """How many rows fit into the batches that are as many as full ones would be.

    Attributes:
        rows: how many fit at most.
        share: of all rows.
        alone: whether each of them is alone in its batch.
        reason: why no more fit.
        remedy: what can be done about the rows.
    """

    rows: int
    share: float
    alone: bool
    reason: str
    remedy: str


class RowTexts:
    """The texts of rows, each as a number of eight bytes."""

    def __init__(self) -> None:
        self._all = array("q")
        self._has_negatives = False
        self._columns = {"anchor": array("q"), "positive": array("q")}

    def __len__(self) -> int:
        return len(self._columns["anchor"])

    @property
    def numbers(self) -> NDArray[np.int64]:
        """The texts of all rows, each once for each of its rows."""
        return np.asarray(self._all)

    def add(self, anchor: int, positive: int, negatives: Iterable[int]) -> None:
        """Remember the texts of a row."""
        others = set(negatives)
        self._has_negatives |= bool(others)
        self._all.extend({anchor, positive} | others)
        self._columns["anchor"].append(anchor)
        self._columns["positive"].append(positive)

    def fit(self, size: int) -> Fit:
        """Return how many rows fit into batches, at most.

        A batch holds a text once, or the text would be its own negative. So of the rows with one
        text, as many fit as there are batches. The rows with one anchor are rows with one text,
        and each row has one anchor, so these numbers add up. The same is true of positives.

        Args:
            size: rows of a full batch.
        """
        rows = len(self)
        batches = -(-rows // size)
        commonest = int(_counts(self._all).max())
        fit = rows - max(0, commonest - batches)
        found = (
            f"one text is in {commonest} of {counted(rows, 'row')}, and a batch holds a text once"
        )
        remedy = "leave out rows with that text, or give more rows without it"
        for name, numbers in self._columns.items():
            counts = _counts(numbers)
            most = int(np.minimum(counts, batches).sum())
            if most < fit:
                fit = most
                found = (
                    f"{counted(rows, 'row has', 'rows have')} {counted(len(counts), name)}, and a "
                    f"batch holds each {name} once"
                )
                remedy = f"give rows with other {name}s"
                if name == "anchor" and self._has_negatives:
                    remedy += ", or put several negatives into a row (`negatives` of the source)"
        reason = (
            f"{found}, so at most {counted(fit, 'row fits', 'rows fit')} into "
            f"{counted(batches, 'batch', 'batches')} of {size}"
        )
        return Fit(fit, fit / rows, fit <= batches, reason, remedy)


def _counts(numbers: "array[int]") -> NDArray[np.int64]:
    """Return how often each number is there."""
    return np.unique(np.asarray(numbers), return_counts=True)[1]
