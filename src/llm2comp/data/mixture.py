"""Shuffle a stream of rows with a seed, and draw from several streams by weight."""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from llm2comp.data import sources
from llm2comp.recipe import DataSource
from llm2comp.utils.progress import text_progress

T = TypeVar("T")

SHUFFLE_ROWS = 100_000


def shuffled(rows: Iterable[T], seed: str, window: int = SHUFFLE_ROWS) -> Iterator[T]:
    """Yield the rows in a random order that depends on ``seed`` alone.

    At most ``window`` rows are held; a longer stream is shuffled approximately,
    each row leaving the window at a random time after it came in.
    """
    generator = random.Random(seed)
    held: list[T] = []
    for row in rows:
        if len(held) < window:
            held.append(row)
            continue
        place = generator.randrange(window)
        yield held[place]
        held[place] = row
    generator.shuffle(held)
    yield from held


def interleave(
    streams: Sequence[Iterator[T]], weights: Sequence[float], count: int
) -> Iterator[tuple[int, T]]:
    """Draw ``count`` rows so that any prefix has the streams' shares as near as it can.

    A stream that ends leaves its share to the others, by their weights.

    Yields:
        The index of the stream, and its next row.
    """
    drawn = [0.0] * len(streams)
    live = set(range(len(streams)))
    total = 0
    while live and total < count:
        behind = min(live, key=lambda i: ((drawn[i] + 1) / weights[i], i))
        try:
            row = next(streams[behind])
        except StopIteration:
            live.discard(behind)
            continue
        drawn[behind] += 1
        total += 1
        yield behind, row


def streams(
    data: Sequence[DataSource],
    columns: Sequence[str],
    seed: int,
    on_bad_row: str,
    optional: Sequence[str] = (),
) -> list[Iterator[dict[str, str]]]:
    """Return the shuffled rows of each source."""
    return [
        shuffled(
            sources.rows(source, columns, on_bad_row, optional),
            seed=f"{seed}/{place}/{source.source}/{source.split}",
        )
        for place, source in enumerate(data)
    ]


def with_progress(rows: Iterable[T], what: str, count: int) -> Iterator[T]:
    """Pass the rows on, with a progress bar over ``count`` of them."""
    with text_progress() as progress:
        yield from progress.track(rows, total=count, description=what)
