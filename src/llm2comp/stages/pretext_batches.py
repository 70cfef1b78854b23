"""How the passages of stage 1 become batches, and where each is cut."""

import random
from collections.abc import Iterator, Sequence

from llm2comp import recipe

WINDOW = 16
"""Batches whose passages are sorted by length together."""


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
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


def split_points(
    lengths: Sequence[int], rule: recipe.Split, step: int, generator: random.Random
) -> list[int]:
    """Draw where each passage of a batch is cut.

    With ``ramp_steps`` the range widens linearly from the fixed ``start``:
    compression ignites on a fixed split and fails on a wide one
    (docs/ignition.md).

    Args:
        lengths: of the batch's passages, in tokens.
        rule: the recipe's.
        step: at which the batch is trained on, from 0.
        generator: draws.
    """
    if rule.per == "batch":
        return [_split_point(min(lengths), rule, step, generator)] * len(lengths)
    return [_split_point(length, rule, step, generator) for length in lengths]


def _split_point(length: int, rule: recipe.Split, step: int, generator: random.Random) -> int:
    low, high = rule.low, rule.high if rule.high is not None else length - rule.margin
    if rule.start is not None and step < rule.ramp_steps:
        widened = step / rule.ramp_steps
        low = round(rule.start + widened * (low - rule.start))
        high = round(rule.start + widened * (high - rule.start))
    high = max(1, min(high, length - 1))
    return generator.randint(min(low, high), high)
