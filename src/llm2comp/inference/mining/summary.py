"""What was mined, in a table and a few examples."""

import random
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llm2comp.inference.mining.miner import Mined
from llm2comp.utils.tables import Cells

EXAMPLES = 3
"""Pairs that are shown."""
WIDTH = 100
"""Characters of a text that are shown."""
MEASURES: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": lambda values: float(np.mean(values)),
    "lowest": min,
    "median": lambda values: float(np.median(values)),
    "highest": max,
}


@dataclass(frozen=True)
class Summary:
    """What was mined.

    Attributes:
        pairs: distinct pairs that negatives were looked for.
        wanted: negatives that each was to get.
        rows: the pairs that got some.
    """

    pairs: int
    wanted: int
    rows: list[Mined]

    def table(self) -> Cells:
        """Return the scores of positives and negatives, and how far they are apart."""
        positives = [row.scores[0] for row in self.rows for _ in row.negatives]
        negatives = [score for row in self.rows for score in row.scores[1:]]
        apart = [p - n for p, n in zip(positives, negatives, strict=True)]
        cells = [["score", "positive", "negative", "difference"]]
        for name, measure in MEASURES.items():
            cells.append([name, *(f"{measure(v):.3f}" for v in (positives, negatives, apart))])
        return cells

    def notes(self) -> list[str]:
        """Return lines that say how many pairs got negatives."""
        full = sum(len(row.negatives) == self.wanted for row in self.rows)
        lines = [f"{full:,} of {self.pairs:,} pairs have {self.wanted} hard negatives"]
        if len(self.rows) > full:
            lines.append(f"{len(self.rows) - full:,} have fewer")
        if self.pairs > len(self.rows):
            lines.append(
                f"{self.pairs - len(self.rows):,} have none and are not in the file: lower the "
                "margins, begin at a lower rank, or give a larger corpus"
            )
        return lines

    def examples(self) -> list[str]:
        """Return the texts of a few rows, which are the same for the same rows."""
        lines = []
        for row in random.Random(0).sample(self.rows, min(EXAMPLES, len(self.rows))):
            texts = [row.positive, *row.negatives]
            labels = ["positive", *["negative"] * len(row.negatives)]
            lines += ["", f"query           {_cut(row.anchor)}"]
            for label, score, text in zip(labels, row.scores, texts, strict=True):
                lines.append(f"{label} {score:6.3f} {_cut(text)}")
        return lines


def _cut(text: str) -> str:
    return textwrap.shorten(text, WIDTH, placeholder=" ...")
