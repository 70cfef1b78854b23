"""Draw the texts on which encoders are analysed."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from llm2comp.data import mixture, sources
from llm2comp.data.drawn.left_out import LeftOut
from llm2comp.errors import UserError
from llm2comp.recipe_parts import DataSource

TEXT, PAIR, SCORE = ("text",), ("anchor", "positive"), ("score",)
"""Columns of plain texts, of pairs, and of scored pairs besides."""
POSITIVE_SCORE = 4.0
"""Scored pairs count as positive from this score on, as for alignment in SimCSE (Gao et al., 2021,
arXiv 2104.08821)."""


@dataclass(frozen=True)
class Sample:
    """Texts, or pairs of texts.

    Attributes:
        source: a name, a path or a hub id.
        texts: the texts to analyse. For pairs, they are the anchors.
        positives: the positive of each text. It is empty if the source has no pairs.
        total: how many rows of the source could be drawn.
        whole: whether these are all; of a large source, only the first rows are read.
    """

    source: str
    texts: list[str]
    positives: list[str]
    total: int
    whole: bool = True

    @property
    def note(self) -> str:
        """How many texts were drawn from what, in words."""
        kind = "pairs" if self.positives else "texts"
        if self.whole and len(self.texts) == self.total:
            return f"all {self.total:,} {kind} of {self.source}"
        of = "" if self.whole else "the first "
        return f"{len(self.texts):,} of {of}{self.total:,} {kind} of {self.source}, drawn by a seed"


def draw(source: str, count: int, seed: int) -> Sample:
    """Draw texts (column `text`), or positive pairs (columns `anchor` and `positive`).

    A `score` is that of a pair. Beside a text it may be anything, such as how educational the text
    is, and is not read.

    Args:
        source: a packaged source, a local file, a folder with all its files, or a dataset of the
            hub.
        count: how many to draw. If there are fewer, all are taken.
        seed: the same seed gives the same texts.

    Raises:
        UserError: if the source is blank, cannot be read, or has neither texts nor pairs.
    """
    if not source.strip():
        raise UserError("the name of the data is blank; give a file, a packaged source or a hub id")
    total = 0
    has_scores = whole = False
    of = DataSource(source=source)
    first = next(sources.rows(of, [], "fail", TEXT + PAIR, LeftOut(), whole=True), {})
    columns = TEXT if "text" in first else PAIR + SCORE

    def usable_rows() -> Iterator[dict[str, str]]:
        nonlocal total, has_scores, whole
        for row in sources.rows(of, [], "fail", columns, whole=True):
            if float(row.get("score", POSITIVE_SCORE)) >= POSITIVE_SCORE:
                total += 1
                yield row
            else:
                has_scores = True
        whole = True

    rows = list(itertools.islice(mixture.shuffle(usable_rows(), f"{seed}/{source}"), count))
    if rows and "text" in rows[0]:
        return Sample(source, [row["text"] for row in rows], [], total, whole)
    if rows and {"anchor", "positive"} <= rows[0].keys():
        anchors = [row["anchor"] for row in rows]
        return Sample(source, anchors, [row["positive"] for row in rows], total, whole)
    if has_scores and not total:
        raise UserError(
            f"{source}: no pair has a score of {POSITIVE_SCORE:g} or more, so none is a positive "
            "pair; give pairs whose scores go up to 5, or leave the scores out"
        )
    raise UserError(
        f"{source}: it has neither texts (column text) nor pairs (columns anchor and positive)"
    )
