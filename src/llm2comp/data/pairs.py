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
    r"""Draw pairs, triples or scored pairs, one dataset a source, sizes by the weights.

    Batches are to be made within one dataset, so that in-batch negatives are of
    one kind. A source that runs out leaves its share to the others.

    Args:
        sources: where rows with columns ``anchor`` and ``positive``, and ``negative`` or
            ``score`` where a source has it, come from.
        count: how many rows in all; there may be fewer, which is logged.
        seed: same seed, same rows in the same order.
        on_bad_row: ``fail`` or ``skip``, see ``sources.rows``.
        held_out: rows to draw beyond ``count``; what is drawn for training stays the same.

    Returns:
        A dataset for each source under its name (``name#2`` for a second use of it), with columns
        anchor, positive and perhaps negative or score (a float); an instruction of a source stands
        in its anchors as ``instruction + ":" + query + "\n"`` (paper, stage 3). And the anchors
        and positives held out, those without a score if there are any.

    Raises:
        UserError: if a source cannot be read, has no rows, or has both negatives and scores.
    """
    rows = mixture.streams(sources, ["anchor", "positive"], seed, on_bad_row, ["negative", SCORE])
    wanted = count + held_out
    draws = mixture.interleave([_new(s) for s in rows], [s.weight for s in sources], wanted)
    drawn: list[list[dict[str, str]]] = [[] for _ in sources]
    held: list[dict[str, str]] = []
    for number, (place, row) in enumerate(mixture.with_progress(draws, "pairs", wanted)):
        row["anchor"] = instructed(sources[place].query_instruction, row["anchor"])
        (drawn[place] if number < count else held).append(row)
    total = sum(map(len, drawn))
    if total < count:
        logger.warning("%d pairs, %d were asked for", total, count)
    result: dict[str, datasets.Dataset] = {}
    for place, (source, found) in enumerate(zip(sources, drawn, strict=True)):
        if not found:
            raise UserError(
                f"{source.source}: no pairs to draw; it is empty, or its weight is too small for "
                f"{count} pairs in all"
            )
        if {"negative", SCORE} <= found[0].keys():
            raise UserError(f"{source.source}: has both negatives and scores; use one of them")
        used = [earlier.source for earlier in sources[:place]].count(source.source)
        dataset = datasets.Dataset.from_list(found)
        if SCORE in dataset.column_names:
            logger.info("%s has scores: its pairs are put in their order (CoSENT)", source.source)
            dataset = dataset.cast_column(SCORE, datasets.Value("float32"))
        result[source.source + (f"#{used + 1}" if used else "")] = dataset
    plain = [row for row in held if SCORE not in row] or held
    return datasets.DatasetDict(result), [(row["anchor"], row["positive"]) for row in plain]


def instructed(instruction: str, query: str) -> str:
    """Return a query with its instruction, if there is one, as the paper's stage 3 puts it."""
    return f"{instruction}:{query}\n" if instruction else query


def _new(rows: Iterator[dict[str, str]]) -> Iterator[dict[str, str]]:
    seen: set[tuple[str, str]] = set()
    for row in rows:
        key = row["anchor"], row["positive"]
        if key not in seen:
            seen.add(key)
            yield row
