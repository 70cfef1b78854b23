"""Losses of the single vector of a text and of its k memory vectors, from one forward pass."""

from typing import Any

from torch import Tensor, nn

from llm2comp.errors import UserError
from llm2comp.recipe import Recipe, Supervised


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


def require_several_tokens(recipe: Recipe, k: int) -> None:
    """Check that a recipe with k vectors has several, before anything is trained.

    Args:
        recipe: the recipe.
        k: memory tokens of the encoder.

    Raises:
        UserError: if it trains or scores k vectors, and the encoder has one or none.
    """
    chosen = {
        f"{stage.stage}.vectors": stage.vectors
        for stage in recipe.stages
        if isinstance(stage, Supervised)
    }
    chosen["evaluation.vectors"] = recipe.evaluation.vectors
    for key, vectors in chosen.items():
        if vectors == "k" and k < 2:
            raise UserError(
                f"{key}: k needs an encoder with several memory tokens, and this one has {k}; "
                "leave it out, or train with memory.tokens above 1"
            )
