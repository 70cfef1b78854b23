"""Query and passage pairs, or triples with a hard negative, for supervised contrastive learning."""

import logging
from collections.abc import Iterator, Sequence

import datasets

from llm2comp.data import mixture
from llm2comp.errors import UserError
from llm2comp.recipe import DataSource

logger = logging.getLogger("llm2comp")


def load_pairs(
    sources: Sequence[DataSource], count: int, seed: int, on_bad_row: str = "fail"
) -> datasets.DatasetDict:
    r"""Draw pairs or triples, one dataset a source, sizes in proportion to the weights.

    Batches are to be made within one dataset, so that in-batch negatives are of
    one kind. A source that runs out leaves its share to the others.

    Args:
        sources: where rows with columns ``anchor`` and ``positive``, and ``negative`` where a
            source has it, come from.
        count: how many rows in all; there may be fewer, which is logged.
        seed: same seed, same rows in the same order.
        on_bad_row: ``fail`` or ``skip``, see ``sources.rows``.

    Returns:
        A dataset for each source under its name (``name#2`` for a second use of it), with columns
        anchor, positive and perhaps negative; an instruction of a source stands in its anchors
        as ``instruction + ":" + query + "\n"`` (paper, stage 3).

    Raises:
        UserError: if a source cannot be read or has no rows.
    """
    rows = mixture.streams(sources, ["anchor", "positive"], seed, on_bad_row, ["negative"])
    draws = mixture.mixed([_new(s) for s in rows], [s.weight for s in sources], count)
    drawn: list[list[dict[str, str]]] = [[] for _ in sources]
    for place, row in mixture.counted(draws, "pairs", count):
        drawn[place].append(row)
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
        used = [earlier.source for earlier in sources[:place]].count(source.source)
        instructed = [row | {"anchor": _instruct(source, row["anchor"])} for row in found]
        result[source.source + (f"#{used + 1}" if used else "")] = datasets.Dataset.from_list(
            instructed
        )
    return datasets.DatasetDict(result)


def _instruct(source: DataSource, query: str) -> str:
    return f"{source.query_instruction}:{query}\n" if source.query_instruction else query


def _new(rows: Iterator[dict[str, str]]) -> Iterator[dict[str, str]]:
    seen: set[tuple[str, str]] = set()
    for row in rows:
        key = row["anchor"], row["positive"]
        if key not in seen:
            seen.add(key)
            yield row
