"""How texts and passages of like length become batches."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray


def batch_by_tokens(tokens: NDArray[np.int64], budget: int) -> Iterator[list[int]]:
    """Yield the rows of batches, the longest texts first, each padded to its first.

    Args:
        tokens: of each text.
        budget: tokens of a batch, padding included; a longer text is a batch of its own.
    """
    rows: list[int] = []
    for row in np.argsort(-tokens, kind="stable"):
        if rows and (len(rows) + 1) * tokens[rows[0]] > budget:
            yield rows
            rows = []
        rows.append(int(row))
    if rows:
        yield rows


WINDOW = 16


"""Batches whose passages are sorted by length together."""


def group_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Group passages into batches of like length and of about as many tokens each.

    As many passages as ``WINDOW`` batches hold are sorted and dealt out at a time, so that a
    batch of short ones has more of them, and one of long ones fewer. Batches come in the order
    of their earliest passage, which is random where passages are: passages of one length stay as
    they are.

    Args:
        lengths: of the passages, in tokens.
        batch_size: passages of a batch on average.

    Yields:
        The indices of a batch's passages; as many batches as ``batch_size`` makes of them.
    """
    size = WINDOW * batch_size
    for start in range(0, len(lengths), size):
        window = range(start, min(start + size, len(lengths)))
        rows = sorted(window, key=lambda i: lengths[i])
        yield from sorted(_dealt(rows, lengths, -(-len(rows) // batch_size)), key=min)


def _dealt(rows: list[int], lengths: Sequence[int], batches: int) -> list[list[int]]:
    """Cut sorted rows into so many batches of about as many tokens, none of them empty."""
    dealt: list[list[int]] = []
    left = sum(lengths[i] for i in rows)
    end = 0
    for after in reversed(range(batches)):
        share, start, tokens = left / (after + 1), end, 0
        while end < len(rows) - after and (
            end == start or not after or tokens + lengths[rows[end]] / 2 <= share
        ):
            tokens += lengths[rows[end]]
            end += 1
        dealt.append(rows[start:end])
        left -= tokens
    return dealt
