"""Pairs for supervised contrastive learning: plain, with a hard negative, or with a score."""

import logging
from collections.abc import Iterator, Sequence

import datasets

from llm2comp.data import mixture
from llm2comp.data.sources import SCORE
from llm2comp.errors import UserError
from llm2comp.recipe import DataSource

logger = logging.getLogger("llm2comp")


def load_pairs(
    sources: Sequence[DataSource],
    count: int,
    seed: int,
    on_bad_row: str = "fail",
    held_out: int = 0,
) -> tuple[datasets.DatasetDict, list[tuple[str, str]]]:
    r"""Draw distinct pairs from a weighted mixture, as one dataset per source.

    The sizes of the datasets follow the weights. If a source has too few rows, the others share its
    part. Each training batch should come from one dataset, so that in-batch negatives are of one
    kind.

    Args:
        sources: sources of rows with the columns `anchor` and `positive`. A source may also have
            the column `negative` or the column `score`.
        count: how many rows to draw in all. If there are fewer, a warning is logged.
        seed: the same seed gives the same rows in the same order.
        on_bad_row: `fail` or `skip`, as in `llm2comp.data.sources.rows`.
        held_out: how many rows to draw in addition. The rows for training do not depend on it.

    Returns:
        A dataset per source, and the anchors and positives of the rows held out.

        The name of a dataset is that of its source (`name#2` for the second use of a source). Its
        columns are `anchor`, `positive` and, if the source has them, `negative` or `score` (a
        float). If a source has an instruction, its anchors are
        `instruction + ":" + query + "\n"` (paper, stage 3).

        Rows with scores are held out only if there are no others.

    Raises:
        UserError: if a source cannot be read, has no rows, or has both negatives and scores.
    """
    shuffled = mixture.shuffled_sources(
        sources, ["anchor", "positive"], seed, on_bad_row, ["negative", SCORE]
    )
    streams = [_distinct_pairs(rows) for rows in shuffled]
    weights = [source.weight for source in sources]
    draws = mixture.interleave(streams, weights, count + held_out)
    rows_by_source: list[list[dict[str, str]]] = [[] for _ in sources]
    held_out_rows: list[dict[str, str]] = []
    progress = mixture.with_progress(draws, "pairs", count + held_out)
    for number, (index, row) in enumerate(progress):
        row["anchor"] = add_instruction(sources[index].query_instruction, row["anchor"])
        (rows_by_source[index] if number < count else held_out_rows).append(row)
    total = sum(map(len, rows_by_source))
    if total < count:
        logger.warning("%d pairs, %d were asked for", total, count)
    result: dict[str, datasets.Dataset] = {}
    for index, (source, rows) in enumerate(zip(sources, rows_by_source, strict=True)):
        if not rows:
            raise UserError(
                f"{source.source}: no pairs to draw; it is empty, or its weight is too small for "
                f"{count} pairs in all"
            )
        earlier_uses = [earlier.source for earlier in sources[:index]].count(source.source)
        name = f"{source.source}#{earlier_uses + 1}" if earlier_uses else source.source
        result[name] = _dataset(source.source, rows)
    plain = [row for row in held_out_rows if SCORE not in row] or held_out_rows
    return datasets.DatasetDict(result), [(row["anchor"], row["positive"]) for row in plain]


def add_instruction(instruction: str, query: str) -> str:
    r"""Return `instruction:query\n` (paper, stage 3), or the query if there is no instruction."""
    return f"{instruction}:{query}\n" if instruction else query


def _dataset(name: str, rows: list[dict[str, str]]) -> datasets.Dataset:
    if {"negative", SCORE} <= rows[0].keys():
        raise UserError(f"{name}: has both negatives and scores; use one of them")
    dataset = datasets.Dataset.from_list(rows)
    if SCORE in dataset.column_names:
        logger.info("%s has scores, so its loss is CoSENT, which ranks pairs by score", name)
        dataset = dataset.cast_column(SCORE, datasets.Value("float32"))
    return dataset


def _distinct_pairs(rows: Iterator[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Yield the first row of each anchor and positive."""
    seen: set[tuple[str, str]] = set()
    for row in rows:
        key = row["anchor"], row["positive"]
        if key not in seen:
            seen.add(key)
            yield row
