"""A loss of several embeddings of a text, which stand in one row."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


def sum_of_parts(losses: Sequence[nn.Module], parts: Sequence[slice]) -> nn.Module:
    """Return the sum of losses, each of another part of the rows, with the weight 1.

    Cached losses (GradCache) keep the gradient of one tensor per text, so all embeddings of a text
    are one row.

    Args:
        losses: of one class; the first is changed in place. One may be there several times.
        parts: the numbers of a row that each loss reads.

    Returns:
        The first loss.
    """
    first = losses[0]
    cached = getattr(first, "uses_gradient_cache", False)
    name = "calculate_loss" if cached else "compute_loss_from_embeddings"
    computing = [getattr(loss, name) for loss in losses]

    def total(rows: list[Tensor | list[Tensor]], *arguments: Any, **options: Any) -> Tensor:
        values: list[Tensor] = [
            compute([_columns(one, part) for one in rows], *arguments, **options)
            for compute, part in zip(computing, parts, strict=True)
        ]
        return sum(values[1:], start=values[0])

    setattr(first, name, total)
    return first


def _columns(rows: Tensor | list[Tensor], part: slice) -> Tensor | list[Tensor]:
    """Return some numbers of each row; cached losses have a list of mini-batches."""
    return rows[:, part] if isinstance(rows, Tensor) else [batch[:, part] for batch in rows]
