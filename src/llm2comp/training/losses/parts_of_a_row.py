"""A loss of several embeddings of a text, which stand in one row."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


def sum_of_parts(losses: Sequence[nn.Module], sizes: Sequence[int]) -> nn.Module:
    """Return the sum of losses, each of another part of the rows, with the weight 1.

    Cached losses (GradCache) keep the gradient of one tensor per text, so all embeddings of a text
    are one row.

    Args:
        losses: of one class; the first is changed in place. One may be there several times.
        sizes: numbers in a row that each loss reads; the part of the next loss follows.

    Returns:
        The first loss.
    """
    first = losses[0]
    cached = getattr(first, "uses_gradient_cache", False)
    name = "calculate_loss" if cached else "compute_loss_from_embeddings"
    computing = [getattr(loss, name) for loss in losses]

    def total(rows: list[Tensor | list[Tensor]], *arguments: Any, **options: Any) -> Tensor:
        columns = [_split(column, sizes) for column in rows]
        parts = zip(computing, zip(*columns, strict=True), strict=True)
        values: list[Tensor] = [
            compute(list(part), *arguments, **options) for compute, part in parts
        ]
        return sum(values[1:], start=values[0])

    setattr(first, name, total)
    return first


def _split(
    rows: Tensor | list[Tensor], sizes: Sequence[int]
) -> Sequence[Tensor] | list[list[Tensor]]:
    """Return the parts of a column; cached losses have a list of mini-batches."""
    if isinstance(rows, Tensor):
        return rows.split(list(sizes), dim=1)
    batches = [batch.split(list(sizes), dim=1) for batch in rows]
    return [list(part) for part in zip(*batches, strict=True)]
