"""The function of the Python API that says what a run will need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llm2comp.errors import UserError

if TYPE_CHECKING:
    from llm2comp.recipe import Recipe
    from llm2comp.training.planning.plan import Plan


def plan(
    recipe: Recipe | str | Path, overrides: Sequence[str] = (), *, gpu: str | None = None
) -> Plan:
    """Return what a run will need: tokens, operations, memory, disk and time of each stage.

    A step of each stage is measured with a model of few layers and random weights, or with `gpu`
    counted, on rows that are drawn as the run draws them. The weights of the backbone are not read.

    Args:
        recipe: as `train` takes it.
        overrides: as `train` takes them.
        gpu: name of the GPU that it will run on, for example `H100-80GB`, or the start of it if no
            other begins like it; `None` is this machine.

    Raises:
        UserError: if the recipe is wrong, its data or backbone is not available, the GPU is not
            known, or the recipe starts from nothing.

    Examples:
        >>> needed = llm2comp.plan("my-recipe.yaml", gpu="L4")
        >>> [stage.changes is None for stage in needed.stages]  # whether each stage fits
        [True, True, True]
    """
    from llm2comp.recipe import Recipe, load_recipe, recipe_path
    from llm2comp.training.planning.machines import gpu_named
    from llm2comp.training.planning.plan import plan_run

    named = gpu_named(gpu) if gpu is not None else None
    if not isinstance(recipe, Recipe):
        changes = [overrides] if isinstance(overrides, str) else list(overrides)
        recipe = load_recipe(recipe_path(str(recipe)), changes)
    elif overrides:
        raise UserError("overrides are for a recipe given by name; change the Recipe itself")
    return plan_run(recipe, named)
