"""What a recipe asks of the encoder that it starts from or makes, before anything is loaded.

A mistake that the recipe and the lineage of the encoder show is refused before a run has a folder.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from llm2comp.errors import UserError
from llm2comp.model.base import base_folder
from llm2comp.model.lineage import LINEAGE, Base, Lineage
from llm2comp.recipe import Contrastive, Pretext, Recipe
from llm2comp.training.losses.late_interaction import require_several_tokens
from llm2comp.training.losses.matryoshka import require_counts
from llm2comp.training.losses.reading import require_memory
from llm2comp.training.pretext import objective_of


def lineage_before(recipe: Recipe) -> Lineage:
    """Return the lineage of a run before its first stage, as far as `require_fitting` reads it.

    Args:
        recipe: the run.

    Raises:
        UserError: if it starts from nothing, or there is no such base, backbone or objective.
    """
    with named_by(recipe):
        if recipe.base is not None:
            folder = base_folder(recipe)
            if (folder / LINEAGE).is_file():
                return Lineage.read(folder)
            return Lineage.of_others(recipe, Base(name=recipe.base, fingerprint=""), {}, None)
        first = recipe.stages[0]
        if not isinstance(first, Pretext):
            raise UserError(f"{first.stage} needs an encoder; set base, or put pretext before it")
        return Lineage.start(recipe, objective_of(first).prompt_format)


def require_fitting(recipe: Recipe, lineage: Lineage) -> None:
    """Check that an encoder has what the stages of a recipe train.

    Args:
        recipe: the run.
        lineage: of the encoder that a stage starts from or, before stage 1, that it makes.

    Raises:
        UserError: if it has no memory to read, too few memory tokens or an attention of its own;
            the message names the recipe and the key.
    """
    with named_by(recipe):
        require_several_tokens(recipe, lineage.num_memory_tokens)
        require_memory(recipe, lineage)
        for stage in recipe.stages:
            if isinstance(stage, Contrastive):
                require_counts(stage.stage, stage.matryoshka_tokens, lineage.num_memory_tokens)
            if stage.attention is not None and lineage.method is None:
                raise UserError(
                    f"{stage.stage}.attention: the attention of {lineage.bases[0].name} stays as "
                    "it is, because it is no encoder of llm2comp; leave the key out"
                )


@contextmanager
def named_by(recipe: Recipe) -> Iterator[None]:
    """Begin the message of a refusal in a block with the name of the recipe."""
    try:
        yield
    except UserError as error:
        raise UserError(f"recipe {recipe.name}: {error}") from error
