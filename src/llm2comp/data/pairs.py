"""Pairs for supervised contrastive learning: plain, with a hard negative, or with a score."""

import logging
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from datasets import Value
from datasets.arrow_writer import ArrowWriter

from llm2comp.data import mixture
from llm2comp.data.drawn.distinct import Distinct, digest
from llm2comp.data.drawn.rows import RowFiles, Summary
from llm2comp.data.sources import SCORE
from llm2comp.errors import UserError
from llm2comp.recipe import DataSource, Supervised

logger = logging.getLogger("llm2comp")

REQUIRED = ("anchor", "positive")
OPTIONAL = ("negative", SCORE)
FILLED = 0.5
"""A stage is refused if less than this share of its rows fits into its batches."""
WELL_FILLED = 0.9
"""There is a warning if less than this share does."""


def write_pairs(files: RowFiles, stage: Supervised, seed: int, on_bad_row: str) -> Summary:
    r"""Draw the pairs of a stage from a weighted mixture, and write one dataset per source.

    The sizes of the datasets follow the weights. If a source has too few rows, the others share its
    part. Each training batch should come from one dataset, so that in-batch negatives are of one
    kind.

    The name of a dataset is that of its source (`name#2` for the second use of a source). Its
    columns are `anchor`, `positive` and, if the source has them, `negative` or `score` (a float).
    If a source has an instruction, its anchors are `instruction + ":" + query + "\n"` (paper,
    stage 3). Rows with scores are held out only if there are no others.

    Args:
        files: where they are written.
        stage: the stage. Its sources have the columns `anchor` and `positive`, and may have
            `negative` or `score`.
        seed: the same seed gives the same rows in the same order.
        on_bad_row: `fail` or `skip`, as in `llm2comp.data.sources.rows`.

    Returns:
        How many pairs there are to train on, in all and by source.

    Raises:
        UserError: if a source cannot be read, has no rows, or has both negatives and scores, or if
            batches cannot be filled because a text is in many rows.
    """
    trained = stage.steps * stage.batch_size
    skipped: dict[str, int] = {}
    held_out: list[dict[str, str]] = []
    with ExitStack() as stack:
        parts = [
            _Part(source, name, files, stack)
            for source, name in zip(stage.data, dataset_names(stage.data), strict=True)
        ]
        drawn = draw_pairs(stage.data, trained + stage.eval_pairs, seed, on_bad_row, skipped)
        for number, (place, row) in enumerate(drawn):
            if number < trained:
                parts[place].write(row)
            else:
                held_out.append(row)
    total = sum(part.rows for part in parts)
    if total < trained:
        logger.warning("%d pairs, %d were asked for", total, trained)
    for part in parts:
        part.check(stage, trained)
    plain = [row for row in held_out if SCORE not in row] or held_out
    with files.held_out({column: Value("string") for column in REQUIRED}) as writer:
        for row in plain:
            writer.write({column: row[column] for column in REQUIRED})
    by_source = {part.name: part.rows for part in parts}
    return {"pairs": by_source} | ({"skipped": skipped} if skipped else {})


def draw_pairs(
    sources: Sequence[DataSource],
    count: int,
    seed: int,
    on_bad_row: str,
    skipped: dict[str, int] | None = None,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Draw distinct rows from a weighted mixture.

    Two rows of a source are the same if anchor, positive and negative are. So a pair with ten
    negatives is ten rows.

    Args:
        sources: as `write_pairs` takes them.
        count: how many rows to draw, if there are so many.
        seed: the same seed gives the same rows in the same order.
        on_bad_row: `fail` or `skip`, as in `llm2comp.data.sources.rows`.
        skipped: if given, gets the number of rows that were skipped, by source.

    Yields:
        The place of a source, and its row with the instruction before the anchor.

    Raises:
        UserError: if a source cannot be read, or has both negatives and scores.
    """
    shuffled = mixture.shuffled_sources(sources, REQUIRED, seed, on_bad_row, OPTIONAL, skipped)
    streams = [_distinct_rows(rows) for rows in shuffled]
    draws = mixture.interleave(streams, [source.weight for source in sources], count)
    for place, row in mixture.with_progress(draws, "pairs", count):
        require_one_kind(sources[place], row)
        row["anchor"] = add_instruction(sources[place].query_instruction, row["anchor"])
        yield place, row


def require_one_kind(source: DataSource, row: Mapping[str, str]) -> None:
    """Check that a row does not have both a negative and a score, which have different losses.

    Raises:
        UserError: if it has both.
    """
    if set(OPTIONAL) <= row.keys():
        raise UserError(f"{source.source}: has both negatives and scores; use one of them")


def add_instruction(instruction: str, query: str) -> str:
    r"""Return `instruction:query\n` (paper, stage 3), or the query if there is no instruction."""
    return f"{instruction}:{query}\n" if instruction else query


class _Part:
    """The rows of one source, while they are written.

    Args:
        source: the source.
        name: the name of its dataset.
        files: where it is written.
        stack: closes its file.
    """

    def __init__(self, source: DataSource, name: str, files: RowFiles, stack: ExitStack) -> None:
        self.source = source
        self.name = name
        self.rows = 0
        self._files = files
        self._stack = stack
        self._writer: ArrowWriter | None = None
        self._columns: list[str] = []
        # Eight bytes for each text of each row. They count how often a text is there, and one
        # chance in a million that two texts out of millions have the same bytes does no harm.
        self._texts = array("Q")

    def write(self, row: Mapping[str, str]) -> None:
        """Write a row. All rows of a source have the same columns."""
        if self._writer is None:
            self._columns = list(row)
            types = {SCORE: "float32"}
            columns = {name: Value(types.get(name, "string")) for name in row}
            self._writer = self._stack.enter_context(self._files.train(self.name, columns, 1000))
        values: dict[str, Any] = dict(row)
        if SCORE in row:
            values[SCORE] = float(row[SCORE])
        else:
            texts = {digest(text)[:8] for text in row.values()}
            self._texts.extend(int.from_bytes(text) for text in texts)
        self._writer.write(values)
        self.rows += 1

    def check(self, stage: Supervised, asked: int) -> None:
        """Check that there are rows, and that batches of them can be filled.

        Raises:
            UserError: if not.
        """
        if not self.rows:
            raise UserError(
                f"{self.source.source}: no pairs to draw; it is empty, or its weight is too small "
                f"for {asked} pairs in all"
            )
        if SCORE in self._columns:
            logger.info("%s has scores: its loss is CoSENT, which ranks pairs by score", self.name)
            return
        size = stage.batch_size
        if "negative" not in self._columns and min(self.rows, size) < 2:
            raise UserError(
                f"{self.name}: {self.rows} pairs in batches of {size}: every pair is alone, and "
                "the other pairs of its batch are its negatives; give more pairs or negatives, "
                "and set supervised.batch_size to 2 or more"
            )
        self._require_full_batches(size)

    def _require_full_batches(self, size: int) -> None:
        """Check that no text is in so many rows that batches stay small.

        A batch holds a text once, or the text would be its own negative. So of the rows with one
        text, as many fit into the batches as there are batches.
        """
        commonest = int(np.unique(np.asarray(self._texts), return_counts=True)[1].max())
        batches = -(-self.rows // size)
        fit = self.rows - max(0, commonest - batches)
        if fit >= WELL_FILLED * self.rows:
            return
        found = (
            f"{self.name}: one text is in {commonest} of {self.rows} rows, and a batch holds a "
            f"text once, so at most {fit} rows fit into {batches} batches of {size}; leave out "
            "rows with that text, or give more rows without it"
        )
        if fit < FILLED * self.rows or commonest == self.rows:
            raise UserError(found)
        logger.warning(found)


def dataset_names(sources: Sequence[DataSource]) -> Iterator[str]:
    """Yield the name of each source's dataset."""
    for place, source in enumerate(sources):
        earlier = [one.source for one in sources[:place]].count(source.source)
        yield f"{source.source}#{earlier + 1}" if earlier else source.source


def _distinct_rows(rows: Iterator[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Yield the first row of each anchor, positive and negative."""
    distinct = Distinct()
    for row in rows:
        if distinct.is_new(row["anchor"], row["positive"], row.get("negative", "")):
            yield row
