"""What a recipe and the processes that a launcher has started must have in common."""

import os
import re

from torch import nn

from llm2comp.errors import UserError
from llm2comp.model.lora import trainable_parameters
from llm2comp.recipe import Contrastive, Recipe, Stage, Supervised
from llm2comp.training.distributed import world, zero
from llm2comp.training.distributed.sharded import divider, is_divided, is_fsdp

EXPERT = re.compile(r"\bexperts\.\d+\.")
"""Part of the name of a parameter of an expert that is a module of its own."""


def require_possible(recipe: Recipe, *, planned: bool) -> None:
    """Check that a recipe can be trained by the processes that a launcher has started.

    Args:
        recipe: what to run.
        planned: whether a plan decides the sizes of its stages.

    Raises:
        UserError: if it cannot.
    """
    if zero.is_zero():
        zero.require_usable()
    if world.size() == 1:
        return
    if planned:
        raise UserError(
            "the size of each stage depends on the time that is left here, and the processes do "
            "not agree about it; train a recipe with its own sizes, or use one process"
        )
    if is_fsdp() and os.environ.get("FSDP_VERSION", "1") != "2":  # accelerate's default is 1
        raise UserError(
            "FSDP is supported in its version 2; set fsdp_version: 2 in accelerate's configuration"
        )
    for stage in recipe.stages:
        _require_divisible(stage)
        if isinstance(stage, Supervised) and stage.reading is not None:
            raise UserError(
                f"{stage.stage}.reading is trained in one process only; leave it out, or use one"
            )
        if is_divided():
            _require_whole_batches(stage)
    if is_divided() and recipe.backbone.load_in_4bit:
        raise UserError(
            f"backbone.load_in_4bit: {divider()} cannot divide weights in 4 bits; leave one of "
            "them out"
        )
    if is_divided() and recipe.evaluation.during is not None:
        raise UserError(
            f"evaluation.during is not possible with {divider()}; leave it out, or train without "
            f"{divider()}"
        )


def require_equal_parts(model: nn.Module) -> None:
    """Check that all that trains has a part in every step of every process.

    The experts of transformers' models are one tensor together. In code from the hub they may be
    modules of their own, and an expert that gets no token of a process has no gradient there.

    Raises:
        UserError: if there are several processes, and such experts train.
    """
    apart = (name for name in trainable_parameters(model) if EXPERT.search(name))
    name = next(apart, None)
    if world.size() > 1 and name is not None:
        raise UserError(
            f"{name} is of one expert among several, and not every process has tokens for it; "
            "train in one process, or leave the experts out of lora.target_modules"
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


def _require_whole_batches(stage: Stage) -> None:
    """Check that a stage can be trained with a model that is divided among the processes.

    All processes must call the model equally often, and DeepSpeed allows one backward pass in a
    step. So a batch cannot be cut into mini-batches.

    Raises:
        UserError: if it cannot.
    """
    name, by = stage.stage, divider()
    if stage.compile:
        raise UserError(f"{name}.compile: compiled blocks cannot be divided by {by}; leave it out")
    if not isinstance(stage, Contrastive):
        return
    if stage.mini_batch_tokens is not None:
        raise UserError(
            f"{name}.mini_batch_tokens: {by} cannot cut a batch by tokens; leave it out"
        )
    if isinstance(stage, Supervised) and stage.guide is not None:
        raise UserError(f"{name}.guide: its loss cuts batches, which {by} cannot; leave it out")
    most = max(source.negatives for source in stage.data)
    if isinstance(stage, Supervised) and stage.mining is not None:
        most = max(most, stage.mining.negatives)
    texts = stage.batch_size // world.size() * most
    if stage.attention != "causal":  # each number of memory tokens is a pass of its own
        texts *= len(stage.matryoshka_tokens or [1])
    if texts > stage.mini_batch_size:
        raise UserError(
            f"{name}: a process has up to {texts} texts of a column at once, and {by} cannot cut "
            f"them into mini-batches; set {name}.mini_batch_size={texts}, or a smaller "
            f"{name}.batch_size, and {name}.gradient_checkpointing=true to save memory"
        )
