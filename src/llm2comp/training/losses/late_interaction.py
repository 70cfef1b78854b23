"""Losses of the single vector of a text and of its k memory vectors, from one forward pass."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from llm2comp.errors import UserError
from llm2comp.recipe import Stage, Supervised


def beside(single: nn.Module, many: nn.Module, dimension: int) -> nn.Module:
    """Return the sum of a loss of single vectors and one of k vectors.

    Both have the weight 1. Cached losses (GradCache) keep the gradient of one tensor per text, so
    the vectors of a text are one row: the single one, and the k others after it
    (`llm2comp.model.multi_vector.memory_vectors.MemoryVectors`).

    Args:
        single: the loss of single vectors; changed in place.
        many: the loss of k vectors. It is of the same class, with another similarity.
        dimension: of a single vector.

    Returns:
        The first loss.
    """
    cached = getattr(single, "uses_gradient_cache", False)
    name = "calculate_loss" if cached else "compute_loss_from_embeddings"
    first, second = getattr(single, name), getattr(many, name)

    def both(rows: list[Tensor | list[Tensor]], *arguments: Any, **options: Any) -> Tensor:
        alone, others = (
            [_columns(column, part) for column in rows]
            for part in (slice(dimension), slice(dimension, None))
        )
        total: Tensor = first(alone, *arguments, **options) + second(others, *arguments, **options)
        return total

    setattr(single, name, both)
    return single


def _columns(rows: Tensor | list[Tensor], part: slice) -> Tensor | list[Tensor]:
    """Return some numbers of each row; cached losses have a list of mini-batches."""
    return rows[:, part] if isinstance(rows, Tensor) else [batch[:, part] for batch in rows]


def require_several_tokens(stages: Sequence[Stage], k: int) -> None:
    """Check that stages that train k vectors have several, before anything is trained.

    Args:
        stages: that are left to train.
        k: memory tokens of the encoder.

    Raises:
        UserError: if a stage trains k vectors, and the encoder has one or none.
    """
    if k < 2 and any(isinstance(stage, Supervised) and stage.vectors == "k" for stage in stages):
        raise UserError(
            f"supervised.vectors: k needs an encoder with several memory tokens, and this one has "
            f"{k}; leave it out, or train with memory.tokens above 1"
        )
