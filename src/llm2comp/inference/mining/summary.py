"""What was mined, in a table and a few examples."""

import random
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llm2comp.errors import counted
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
        rows: the pairs that have some, found or of their own.
        remedy: what may give more, in words.
    """

    pairs: int
    wanted: int
    rows: list[Mined]
    remedy: str

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
        """Return lines that say how many pairs got negatives, and how many had some."""
        full = sum(len(row.negatives) == self.wanted for row in self.rows)
        none = self.pairs - len(self.rows)
        own = [row for row in self.rows if row.own]
        pairs = counted(self.pairs, "pair has", "pairs have")
        lines = [f"{full:,} of {pairs} {counted(self.wanted, 'hard negative')}"]
        if own:
            count = sum(len(row.own) for row in own)
            lines[0] += " that were found"
            lines.append(
                f"{len(own):,} had {counted(count, 'negative')} of their own, which come first "
                "in their rows"
            )
        if len(self.rows) > full:
            lines.append(f"{counted(len(self.rows) - full, 'has', 'have')} fewer")
        if none:
            lines.append(f"{counted(none, 'has none and is', 'have none and are')} not in the file")
        if full < self.pairs:
            lines.append(f"for more negatives, {self.remedy}")
        return lines

    def examples(self) -> list[str]:
        """Return the texts of a few rows, which are the same for the same rows."""
        lines = []
        found = [row for row in self.rows if row.negatives]
        for row in random.Random(0).sample(found, min(EXAMPLES, len(found))):
            texts = [row.positive, *row.negatives]
            labels = ["positive", *["negative"] * len(row.negatives)]
            lines += ["", f"query           {_cut(row.anchor)}"]
            for label, score, text in zip(labels, row.scores, texts, strict=True):
                lines.append(f"{label} {score:6.3f} {_cut(text)}")
        return lines


def _cut(text: str) -> str:
    return textwrap.shorten(text, WIDTH, placeholder=" ...")
