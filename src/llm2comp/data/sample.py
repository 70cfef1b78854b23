"""The texts that an encoder is analysed on, drawn by a seed from a file or a packaged source."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from llm2comp.data import mixture, sources
from llm2comp.errors import UserError
from llm2comp.recipe import DataSource

COLUMNS = ("text", "anchor", "positive", "score")
POSITIVE_SCORE = 4.0
"""Scored pairs from this on are positive ones, as for alignment in SimCSE (Gao et al., 2021)."""


@dataclass(frozen=True)
class Sample:
    """Texts, or pairs of texts.

    Attributes:
        source: name, path or hub id.
        texts: what is analysed; of pairs, the anchors.
        positives: of each text; empty where the source has no pairs.
        total: rows of the source that could have been drawn.
    """

    source: str
    texts: list[str]
    positives: list[str]
    total: int

    @property
    def note(self) -> str:
        """How the texts were come by, in words."""
        kind = "pairs" if self.positives else "texts"
        if len(self.texts) == self.total:
            return f"all {self.total:,} {kind} of {self.source}"
        return f"{len(self.texts):,} of {self.total:,} {kind} of {self.source}, drawn by a seed"


def draw(source: str, count: int, seed: int) -> Sample:
    """Draw texts with a column ``text``, or pairs with ``anchor`` and ``positive``.

    Args:
        source: as in a recipe: packaged source, local file or hub dataset.
        count: how many to draw; all, if there are fewer.
        seed: same seed, same texts.

    Raises:
        UserError: if the source cannot be read, or has neither texts nor pairs.
    """
    seen = 0

    def usable() -> Iterator[dict[str, str]]:
        nonlocal seen
        for row in sources.rows(DataSource(source=source), [], "fail", COLUMNS):
            if float(row.get("score", POSITIVE_SCORE)) >= POSITIVE_SCORE:
                seen += 1
                yield row

    rows = list(itertools.islice(mixture.shuffled(usable(), f"{seed}/{source}"), count))
    if rows and "text" in rows[0]:
        return Sample(source, [row["text"] for row in rows], [], seen)
    if rows and {"anchor", "positive"} <= rows[0].keys():
        anchors = [row["anchor"] for row in rows]
        return Sample(source, anchors, [row["positive"] for row in rows], seen)
    raise UserError(f"{source}: neither texts (column text) nor pairs (anchor, positive) in it")
