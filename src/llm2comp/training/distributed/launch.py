"""What a recipe and the processes that a launcher has started must have in common."""

from llm2comp.errors import UserError
from llm2comp.recipe import Recipe
from llm2comp.training.distributed import world


def require_possible(recipe: Recipe, *, planned: bool) -> None:
    """Check that a recipe can be trained by the processes that a launcher has started.

    Args:
        recipe: what to run.
        planned: whether a plan decides the sizes of its stages.

    Raises:
        UserError: if it cannot.
    """
    number = world.size()
    if number == 1:
        return
    if planned:
        raise UserError(
            "the size of each stage depends on the time that is left here, on which processes do "
            "not agree; train a recipe with its own sizes, or use one process"
        )
    for stage in recipe.stages:
        if stage.batch_size % number:
            below = stage.batch_size // number * number
            possible = f"{below} or {below + number}" if below else str(number)
            raise UserError(
                f"{stage.stage}.batch_size={stage.batch_size} cannot be divided among {number} "
                f"processes; set {possible}"
            )
