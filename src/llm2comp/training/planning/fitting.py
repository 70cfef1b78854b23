"""What a recipe asks of the encoder that it starts from or makes, before anything is loaded.

A mistake that the recipe and the lineage of the encoder show is refused before a run has a folder.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm2comp.errors import UserError
from llm2comp.model import released
from llm2comp.model.base import base_folder
from llm2comp.model.lineage import LINEAGE, Base, Lineage
from llm2comp.recipe import STAGE_FOLDERS, Contrastive, Pretext, Recipe
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
    """Check that an encoder has what the stages of a recipe train, and `start_from` its settings.

    Args:
        recipe: the run.
        lineage: of the encoder that a stage starts from or, before stage 1, that it makes.

    Raises:
        UserError: if it has no memory to read, too few memory tokens or an attention of its own, or
            stage 1 starts from another kind of encoder; the message names the recipe and the key.
    """
    with named_by(recipe):
        if not lineage.stages:  # later stages do not read `start_from`
            _require_stage_1(recipe, lineage)
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


def _require_stage_1(recipe: Recipe, lineage: Lineage) -> None:
    """Check that `start_from` is a stage 1 of what the recipe trains.

    The adapter of a later stage was trained on weights with the stages before it. It has the same
    names and shapes as that of stage 1, so loading it would not fail.

    Args:
        recipe: the run.
        lineage: of the run before its first stage.

    Raises:
        UserError: if it is another stage, or its backbone or what it reads is another.
    """
    first = recipe.stages[0]
    if not isinstance(first, Pretext) or first.start_from is None:
        return
    name = first.start_from
    known = released.lineage_of_adapter(released.adapter_of(name))
    stages = [entry.stage for entry in known.stages]
    if stages != [first.stage] or known.backbone is None or known.memory is None:
        raise UserError(
            f"pretext.start_from: {name} has the adapter of its last stage ({', '.join(stages)}), "
            "and only that of a stage 1 fits the backbone; give the folder of stage 1, in its run "
            f"{Path(name).parent / STAGE_FOLDERS[first.stage]}"
        )
    assert lineage.memory is not None
    for key, theirs, ours in (
        ("backbone.name", Path(known.backbone.name).name, Path(recipe.backbone.name).name),
        ("backbone.add_bos", known.backbone.add_bos, recipe.backbone.add_bos),
        ("memory.scale", known.memory.scale, lineage.memory.scale),
        ("the prompt format", known.prompt_format, lineage.prompt_format),
    ):
        if theirs != ours:
            raise UserError(
                f"pretext.start_from: {name} was trained with {key} {json.dumps(theirs)}, and this "
                f"recipe has {json.dumps(ours)}; take the same, or start from another stage 1"
            )


@contextmanager
def named_by(recipe: Recipe) -> Iterator[None]:
    """Begin the message of a refusal in a block with the name of the recipe."""
    try:
        yield
    except UserError as error:
        raise UserError(f"recipe {recipe.name}: {error}") from error
