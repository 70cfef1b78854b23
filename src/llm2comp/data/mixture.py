"""Shuffle sources of rows with a seed, and draw from several sources by weight."""

import itertools
import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from llm2comp.data import sources
from llm2comp.data.drawn.left_out import LeftOut
from llm2comp.recipe_parts import DataSource
from llm2comp.utils.progress import text_progress

logger = logging.getLogger("llm2comp")

T = TypeVar("T")

SHUFFLE_ROWS = 100_000
"""The most rows that a shuffle holds in memory."""


def shuffle(rows: Iterable[T], seed: str, window: int = SHUFFLE_ROWS) -> Iterator[T]:
    """Yield all rows in a random order that depends on `seed` only.

    Args:
        rows: any number of rows.
        seed: the same seed gives the same order.
        window: the most rows to hold in memory. With more rows than that the shuffle is
            approximate: each new row replaces a random row of the window, which is then yielded.
    """
    # A file name that is not UTF-8 has surrogates, which `Random` does not take in a string.
    generator = random.Random(seed.encode("utf-8", errors="surrogatepass"))
    buffer: list[T] = []
    for row in rows:
        if len(buffer) < window:
            buffer.append(row)
            continue
        index = generator.randrange(window)
        yield buffer[index]
        buffer[index] = row
    generator.shuffle(buffer)
    yield from buffer


def interleave(
    streams: Sequence[Iterator[T]], weights: Sequence[float], count: int
) -> Iterator[tuple[int, T]]:
    """Draw rows from several streams in proportion to their weights.

    Also the first n rows have these proportions, for every n, as nearly as whole rows can. When a
    stream ends, the others share its part by their weights.

    Args:
        streams: iterators over rows.
        weights: one positive weight per stream.
        count: how many rows to draw. There are fewer if all streams end before.

    Yields:
        The index of a stream, and its next row.
    """
    drawn = [0.0] * len(streams)
    open_streams = set(range(len(streams)))
    total = 0
    while open_streams and total < count:
        # The stream that is furthest behind its share is next.
        index = min(open_streams, key=lambda i: ((drawn[i] + 1) / weights[i], i))
        try:
            row = next(streams[index])
        except StopIteration:
            open_streams.discard(index)
            continue
        drawn[index] += 1
        total += 1
        yield index, row


def shuffled_sources(
    data: Sequence[DataSource],
    columns: Sequence[str],
    seed: int,
    on_bad_row: str,
    optional: Sequence[str] = (),
    left_out: LeftOut | None = None,
) -> list[Iterator[dict[str, Any]]]:
    """Return one iterator per source, over its rows in random order.

    Args:
        data: the sources.
        columns: the columns that each row must have.
        seed: the same seed gives the same order.
        on_bad_row: `fail` or `skip`, as in `llm2comp.data.sources.rows`.
        optional: columns that a source may have.
        left_out: if given, counts what is left out of each source.
    """
    # With the place, a source that is used twice has two orders.
    seeds = [f"{seed}/{place}/{one.source}/{one.split}" for place, one in enumerate(data)]
    return [
        shuffle(sources.rows(one, columns, on_bad_row, optional, left_out, own), own)
        for one, own in zip(data, seeds, strict=True)
    ]


def draw(
    data: Sequence[DataSource], streams: Sequence[Iterator[T]], what: str, count: int
) -> Iterator[tuple[int, T]]:
    """Draw rows from sources in proportion to their weights, with a progress bar.

    If a source has fewer rows than its weight asks for, a warning says how many each source gave.

    Args:
        data: the sources.
        streams: for each source, an iterator over what is drawn from it.
        what: the name of what is drawn.
        count: how much to draw.

    Yields:
        The place of a source, and what is drawn.
    """
    weights = [source.weight for source in data]
    drawn = [0] * len(data)
    with text_progress() as progress:
        rows = interleave(streams, weights, count)
        for place, row in progress.track(rows, total=count, description=what):
            drawn[place] += 1
            yield place, row
    endless = [itertools.repeat(None) for _ in data]
    asked = Counter(place for place, _ in interleave(endless, weights, count))
    short = [place for place in range(len(data)) if drawn[place] < asked[place]]
    if short and len(data) > 1:
        logger.warning(
            "%s: the weights are not kept, because %s had too few: %s",
            what,
            " and ".join(data[place].source for place in short),
            ", ".join(
                f"{source.source} gave {drawn[place]:,} of {asked[place]:,} asked for"
                for place, source in enumerate(data)
            ),
        )
