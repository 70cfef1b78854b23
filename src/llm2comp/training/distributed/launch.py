"""What a recipe and the processes that a launcher has started must have in common."""

import os

from llm2comp.errors import UserError
from llm2comp.recipe import Contrastive, Recipe, Stage, Supervised
from llm2comp.training.distributed import world
from llm2comp.training.distributed.sharded import is_fsdp


def require_possible(recipe: Recipe, *, planned: bool) -> None:
    """Check that a recipe can be trained by the processes that a launcher has started.

    Args:
        recipe: what to run.
        planned: whether a plan decides the sizes of its stages.

    Raises:
        UserError: if it cannot.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise UserError(
            "DeepSpeed is not supported; divide the weights with FSDP, as the configuration "
            "fsdp.yaml of docs/guides/many-devices.md does"
        )
    if world.size() == 1:
        return
    if planned:
        raise UserError(
            "the size of each stage depends on the time that is left here, and the processes do "
            "not agree about it; train a recipe with its own sizes, or use one process"
        )
    for stage in recipe.stages:
        _require_divisible(stage)
        if is_fsdp():
            _require_divided_weights(stage)
    if is_fsdp() and recipe.backbone.load_in_4bit:
        raise UserError(
            "backbone.load_in_4bit: FSDP cannot divide weights in 4 bits; leave one of them out"
        )
    if is_fsdp() and recipe.evaluation.during is not None:
        raise UserError(
            "evaluation.during needs a process that has the whole model, and FSDP divides it; "
            "leave it out, or train without FSDP"
        )


def _require_divisible(stage: Stage) -> None:
    number, size = world.size(), stage.batch_size
    if size % number:
        below = size // number * number
        possible = f"{below} or {below + number}" if below else str(number)
        raise UserError(
            f"{stage.stage}.batch_size={size} cannot be divided among {number} processes; set "
            f"{possible}"
        )


def _require_divided_weights(stage: Stage) -> None:
    """Check that a stage can be trained with weights that are divided among the processes.

    All processes must call the model equally often, so a batch cannot be cut into mini-batches.

    Raises:
        UserError: if it cannot.
    """
    name = stage.stage
    if stage.compile:
        raise UserError(f"{name}.compile: compiled blocks cannot be divided by FSDP; leave it out")
    if not isinstance(stage, Contrastive):
        return
    if stage.mini_batch_tokens is not None:
        raise UserError(
            f"{name}.mini_batch_tokens: FSDP cannot cut a batch by tokens; leave it out"
        )
    if isinstance(stage, Supervised) and stage.guide is not None:
        raise UserError(f"{name}.guide: its loss cuts batches, which FSDP cannot; leave it out")
    most = max(source.negatives for source in stage.data)
    if isinstance(stage, Supervised) and stage.mining is not None:
        most = max(most, stage.mining.negatives)
    texts = stage.batch_size // world.size() * most
    if texts > stage.mini_batch_size:
        raise UserError(
            f"{name}: a process has up to {texts} texts of a column at once, and FSDP cannot cut "
            f"them into mini-batches; set {name}.mini_batch_size={texts}, or a smaller "
            f"{name}.batch_size, and {name}.gradient_checkpointing=true to save memory"
        )
