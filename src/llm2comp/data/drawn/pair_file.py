"""The pairs that were drawn from one source, as an Arrow file.

Pairs have the columns `anchor` and `positive`, and scored pairs `score` (a float) too. Other pairs
may have:

| column | |
|---|---|
| `negative` | a text or None; with `negatives` above 1, a list of texts, which may be empty |
| `positives` | the numbers of all known positives of the anchor, if there are several |

None of these texts is a negative of the anchor, neither in its row nor in a batch. Where an anchor
is a query with an instruction or a prompt, the query alone counts as a positive if a row has it.
"""

import logging
from array import array
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, List, Value
from datasets.arrow_writer import ArrowWriter

from llm2comp.data.drawn.distinct import number
from llm2comp.data.drawn.full_batches import FILLED, WELL_FILLED, RowTexts
from llm2comp.data.drawn.rows import RowFiles
from llm2comp.data.formats.layouts import PROMPT
from llm2comp.data.sources import NEGATIVE, SCORE
from llm2comp.errors import UserError, counted
from llm2comp.recipe_parts import DataSource

logger = logging.getLogger("llm2comp")

POSITIVES = "positives"
QUERY = "query"
"""Key of a row with the query alone, without what its anchor has before and behind it."""
WRITTEN_TOGETHER = 1000
"""Rows that are kept in memory before they are written."""


class PairFile:
    """The pairs of one source, while they are written.

    Args:
        source: the source.
        name: the name of its dataset.
        files: where it is written.
        stack: closes its file.

    Attributes:
        rows: how many there are.
        prompts: what rows have before their anchors of their own.
    """

    def __init__(self, source: DataSource, name: str, files: RowFiles, stack: ExitStack) -> None:
        self.source = source
        self.name = name
        self.rows = 0
        self.prompts: set[str] = set()
        self._files = files
        self._stack = stack
        self._writer: ArrowWriter | None = None
        self._columns: dict[str, Any] = {}
        self._has_negatives = False
        self._texts = RowTexts()
        # Eight bytes for each positive of an anchor, and for each query without its instruction.
        self._anchors = array("q")
        self._positives = array("q")
        self._asked = array("q")
        self._queries = array("q")

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a row of `llm2comp.data.sources.rows` with its `QUERY`.

        All rows of a source are scored, or none.
        """
        if self._writer is None:
            self._columns = self._features(scored=SCORE in row)
            writer = self._files.train(self.name, self._columns, WRITTEN_TOGETHER)
            self._writer = self._stack.enter_context(writer)
        if SCORE in row:
            values = {"anchor": row["anchor"], "positive": row["positive"]}
            self._writer.write(values | {SCORE: float(row[SCORE])})
        else:
            self._writer.write(self._pair(row))
            self.prompts.update([row[PROMPT]] if PROMPT in row else [])
        self.rows += 1

    def _features(self, *, scored: bool) -> dict[str, Any]:
        text = Value("string")
        pair = {"anchor": text, "positive": text}
        if scored:
            return pair | {SCORE: Value("float32")}
        negative = List(text) if self.source.negatives > 1 else text
        return pair | {NEGATIVE: negative, POSITIVES: List(Value("int64"))}

    def _pair(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of a row, and remember its texts."""
        anchor, positive, negatives = row["anchor"], row["positive"], row.get(NEGATIVE, [])
        anchor_number = number(anchor)
        self._texts.add(anchor_number, number(positive), map(number, negatives))
        self._has_negatives |= bool(negatives)
        for one in row.get(POSITIVES, [positive]):
            self._anchors.append(anchor_number)
            self._positives.append(number(one))
        if row[QUERY] != anchor:
            self._asked.append(anchor_number)
            self._queries.append(number(row[QUERY]))
        return {
            "anchor": anchor,
            "positive": positive,
            NEGATIVE: self._stored(negatives),
            POSITIVES: [],
        }

    def _stored(self, negatives: list[str]) -> Any:
        """Return negatives as the column holds them."""
        if self.source.negatives > 1:
            return negatives
        return negatives[0] if negatives else None

    def require_batches(self, batch_size: int, asked: int) -> None:
        """Check that there are rows, and that batches of them can be filled.

        Rows with scores or a teacher fill any batch: the other rows of it are not their negatives.

        Args:
            batch_size: rows of a batch.
            asked: how many pairs all sources were to give.

        Raises:
            UserError: if not.
        """
        if not self.rows:
            raise UserError(
                f"{self.source.source}: no pairs to draw; it is empty, or its weight is too small "
                f"for {counted(asked, 'pair')} in all"
            )
        if SCORE in self._columns:
            logger.info("%s has scores: its loss is CoSENT, which ranks pairs by score", self.name)
            return
        if self.source.teacher is not None:
            return  # what it says of a row is learned without the other rows
        lonely = min(self.rows, batch_size) < 2
        if lonely and not self._has_negatives:
            raise UserError(
                f"{self.name}: {counted(self.rows, 'pair')} in batches of {batch_size}: every pair "
                "is alone, and the other pairs of its batch are its negatives; give more pairs "
                "or negatives, and set supervised.batch_size to 2 or more"
            )
        self._require_full_batches(batch_size)

    def _require_full_batches(self, size: int) -> None:
        """Check that texts are not in so many rows that batches stay small."""
        fit = self._texts.fit(size)
        if fit.share >= WELL_FILLED:
            return
        found = f"{self.name}: {fit.reason}; {fit.remedy}"
        if fit.share < FILLED or fit.alone:
            raise UserError(found)
        logger.warning(found)

    def tell_positives_apart(self) -> int:
        """Note the positives of each anchor that has several, once the file is closed.

        A negative that is a positive of its anchor, also in another row, is left out.

        Returns:
            How many negatives are left out.
        """
        known = self._several_positives()
        if not known:
            return 0
        left_out = 0

        def corrected(row: dict[str, Any]) -> dict[str, Any]:
            nonlocal left_out
            positives = known.get(number(row["anchor"]), [])
            negatives = texts_of(row[NEGATIVE])
            kept = [text for text in negatives if number(text) not in positives]
            left_out += len(negatives) - len(kept)
            return row | {NEGATIVE: self._stored(kept), POSITIVES: positives}

        self._files.rewrite(self.name, self._columns, WRITTEN_TOGETHER, corrected)
        return left_out

    def _several_positives(self) -> dict[int, list[int]]:
        """Return the numbers of the positives of each anchor that has several.

        A query that is a text of a row is one of them: no negative of what asks it.
        """
        pairs = np.stack([self._anchors, self._positives], axis=1)
        if self._queries:
            queries = np.stack([self._asked, self._queries], axis=1)
            elsewhere = np.isin(queries[:, 1], self._texts.numbers)
            pairs = np.concatenate([pairs, queries[elsewhere]])
        pairs = np.unique(pairs, axis=0)
        anchors, starts, counts = np.unique(pairs[:, 0], return_index=True, return_counts=True)
        return {
            int(anchor): pairs[start : start + count, 1].tolist()
            for anchor, start, count in zip(anchors, starts, counts, strict=True)
            if count > 1
        }


def texts_of(value: str | list[str] | None) -> list[str]:
    """Return the texts of a column's value: a text, a list of texts, or None."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


def negatives_of(dataset: Dataset) -> tuple[int, int]:
    """Return the fewest and the most negatives of a row."""
    if NEGATIVE not in dataset.column_names:
        return 0, 0
    column = dataset.data.column(NEGATIVE)
    if not isinstance(dataset.features[NEGATIVE], List):
        return (0 if column.null_count else 1), 1
    found = pc.min_max(pc.list_value_length(column)).as_py()
    return found["min"], found["max"]
