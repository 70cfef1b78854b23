"""What training with the k memory vectors of a text asks of its encoder."""

from llm2comp.errors import UserError
from llm2comp.recipe import Recipe, Supervised


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
