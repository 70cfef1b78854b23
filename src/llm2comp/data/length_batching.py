"""Batches of texts with similar lengths, so that little is padded."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

WINDOW = 16
"""Passages for this many batches are sorted by length together."""


def batch_by_tokens(tokens: NDArray[np.int64], budget: int) -> Iterator[list[int]]:
    """Divide texts into batches with a limited number of tokens, the longest texts first.

    Args:
        tokens: the number of tokens of each text, shape `(texts,)`.
        budget: the most tokens per batch. Each text counts as long as the longest one of its
            batch, because it is padded to that length. A text that is longer than the budget is a
            batch of its own.

    Yields:
        The indices of the texts of a batch, from the longest text to the shortest.
    """
    batch: list[int] = []
    for index in np.argsort(-tokens, kind="stable"):
        if batch and (len(batch) + 1) * tokens[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(int(index))
    if batch:
        yield batch


def group_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Divide passages into batches of similar length and with about as many tokens each.

    Passages for `WINDOW` batches are sorted by length and then cut into batches. A batch of short
    passages has more of them than `batch_size`, and a batch of long passages has fewer. The batches
    of a window come in the order of their earliest passage. If the passages are in a random order,
    so are the batches. If all passages have the same length, their order does not change.

    Args:
        lengths: the number of tokens of each passage.
        batch_size: the average number of passages per batch.

    Yields:
        The indices of the passages of a batch. There are as many batches as there would be with
        exactly `batch_size` passages each.
    """
    window = WINDOW * batch_size
    for start in range(0, len(lengths), window):
        indices = range(start, min(start + window, len(lengths)))
        by_length = sorted(indices, key=lambda index: lengths[index])
        batches = -(-len(by_length) // batch_size)
        yield from sorted(_cut_evenly(by_length, lengths, batches), key=min)


def _cut_evenly(indices: list[int], lengths: Sequence[int], batches: int) -> list[list[int]]:
    """Cut a list of passages into batches with about as many tokens each, none of them empty."""
    result: list[list[int]] = []
    tokens_left = sum(lengths[index] for index in indices)
    end = 0
    for batches_after in reversed(range(batches)):
        share = tokens_left / (batches_after + 1)
        start, tokens = end, 0
        # Leave at least one passage for each batch that follows. The last batch takes all.
        while end < len(indices) - batches_after and (
            end == start or not batches_after or tokens + lengths[indices[end]] / 2 <= share
        ):
            tokens += lengths[indices[end]]
            end += 1
        result.append(indices[start:end])
        tokens_left -= tokens
    return result
