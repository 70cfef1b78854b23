"""Stage 1: teach memory tokens to carry a text, judged by the frozen model."""

import random
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from llm2comp.data.drawn.batches import cut, write_batches
from llm2comp.data.drawn.left_out import LeftOut
from llm2comp.data.drawn.rows import RowFiles, Rows, Summary, drawn_once
from llm2comp.data.passages import draw_passages
from llm2comp.errors import UserError
from llm2comp.model import encoder, released
from llm2comp.model.adapter_checks import Original, check_frozen
from llm2comp.model.backbone import load_backbone
from llm2comp.model.causal_lm.parts import body_of, positions_of
from llm2comp.model.compressor import Compressor
from llm2comp.model.lineage import Lineage, StageRecord
from llm2comp.model.lora_targets import Adapted, adapted_layers, target_modules
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.recipe import Pretext, Recipe
from llm2comp.training.attention_switch import AttentionSwitch
from llm2comp.training.distributed import world
from llm2comp.training.distributed.shares import Share, deal
from llm2comp.training.monitoring import held_out
from llm2comp.training.monitoring.divergence import saving
from llm2comp.training.monitoring.progress import TokenCounter
from llm2comp.training.monitoring.watches import HeldOutWatch
from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.objective import Objective
from llm2comp.training.objectives.registry import OBJECTIVES
from llm2comp.training.stage_context import StageContext
from llm2comp.training.trainer import (
    PretextTrainer,
    compile_blocks,
    log_trained,
    run_training,
    training_arguments,
)
from llm2comp.utils.hardware import compute_dtype, free_unused_memory, freed_memory_returned


class PretextModel(nn.Module):
    """A model with its objective, in the form that the Trainer needs: it turns a batch into a loss.

    Args:
        compressor: the model.
        objective: what it is trained on.
    """

    def __init__(self, compressor: Compressor, objective: Objective) -> None:
        super().__init__()
        self.compressor = compressor
        self.objective = objective
        self.counter = TokenCounter()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `{"loss": scalar}`."""
        batch = batch.to(self.compressor.device)
        self.counter.add(batch.attention_mask)
        return {"loss": self.objective.loss(self.compressor, batch)}


@dataclass(frozen=True)
class Collator:
    """Turns passages and their splits into a `Batch`.

    Attributes:
        memory_ids: token ids of the memory tokens.
        bos_id: token id before every text, if the model has one.
        pad_id: token id of the padding.
    """

    memory_ids: list[int]
    bos_id: int | None
    pad_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Batch]:
        """Return `{"batch": Batch}` from a list with one row; a row has the passages of a batch.

        If several processes train together, each gets its share of the passages.
        """
        (row,) = rows
        if world.size() == 1:
            passages = [list(ids) for ids in row["input_ids"]]
            return {"batch": self.batch(passages, list(row["split"]))}
        every = list(zip(row["input_ids"], row["split"], strict=True))
        own = deal(every)[world.rank()]
        batch = self.batch(*map(list, zip(*(own or every[:1]), strict=True)))
        return {"batch": replace(batch, share=Share(len(own), len(every)))}

    def batch(self, passages: list[list[int]], splits: list[int]) -> Batch:
        """Return the batch of passages (token ids) that are cut at `splits`."""
        return Batch.of(
            passages, splits, memory_ids=self.memory_ids, bos_id=self.bos_id, pad_id=self.pad_id
        )


def train_pretext(context: StageContext[Pretext]) -> None:
    """Train stage 1 on the recipe's backbone and write its encoder folder.

    Args:
        context: the stage.

    Raises:
        UserError: if the objective, the data, the backbone or `start_from` cannot be used.
    """
    adapted, causal = _train(context)
    free_unused_memory()  # because the backbone is loaded next
    world.from_main(lambda: _write(context, adapted, causal=causal))


def _train(context: StageContext[Pretext]) -> tuple[Adapted, bool]:
    """Train stage 1, and write its adapter into the work folder.

    With `steps: 0` the adapter is a new one, which changes nothing when it is merged.

    Returns:
        What was adapted, and whether the encoder's attention is causal in the end.
    """
    stage, recipe = context.stage, context.recipe
    dtype = compute_dtype(recipe.backbone.dtype)
    model, tokenizer, original = _extended_backbone(recipe, stage, dtype)
    rows = _rows(context, tokenizer) if stage.steps else None
    pretext, collator = pretext_model(recipe, stage, model, tokenizer)
    check_frozen(pretext.compressor, original)
    adapted = adapted_layers(pretext.compressor.adapted)
    log_trained(context, adapted)
    if rows is not None:
        _optimise(context, pretext, collator, tokenizer, rows)
    world.from_main(lambda: pretext.compressor.save_adapter(context.workdir / encoder.ADAPTER))
    return adapted, pretext.compressor.causal


def _optimise(
    context: StageContext[Pretext],
    pretext: PretextModel,
    collator: Collator,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
) -> None:
    """Train the adapter and the memory embeddings of stage 1, in place."""
    stage, recipe, log = context.stage, context.recipe, context.log
    dtype = compute_dtype(recipe.backbone.dtype)
    compressor, objective = pretext.compressor, pretext.objective
    trainer = PretextTrainer(
        stage=stage,
        tokenizer=tokenizer,
        model=pretext,
        args=TrainingArguments(
            **training_arguments(context, dtype)
            | {"per_device_train_batch_size": 1},  # because a row is a whole batch
            train_sampling_strategy="sequential",  # the rows are shuffled already
            remove_unused_columns=False,
        ),
        train_dataset=rows.train["passages"],
        data_collator=collator,
    )
    if stage.bidirectional_from_step is not None:
        trainer.add_callback(AttentionSwitch(compressor, stage.bidirectional_from_step))
    batches = _held_out_batches(list(rows.held_out["input_ids"]), objective, collator)
    trainer.add_callback(HeldOutWatch(compressor, objective, batches, stage, dtype, log))
    run_training(trainer, context, pretext.counter)


def step_seconds(recipe: Recipe, stage: Pretext, repeats: int = 3) -> float:
    """Time a training step of stage 1 on this machine, without any data.

    Args:
        recipe: the whole recipe.
        stage: its stage 1.
        repeats: number of steps to time, after a first one that only allocates memory.

    Returns:
        The median time in seconds of a forward and a backward pass of one batch.

    Raises:
        UserError: if the backbone cannot be had.
    """
    dtype = compute_dtype(recipe.backbone.dtype)
    model, tokenizer, _ = _extended_backbone(recipe, stage, dtype)
    pretext, collator = pretext_model(recipe, stage, model, tokenizer)
    length = stage.passages.max_tokens
    generator = random.Random(recipe.seed)
    passages = [
        [generator.randrange(pretext.compressor.vocabulary) for _ in range(length)]
        for _ in range(stage.batch_size)
    ]
    whole = objective_of(stage).whole_passage
    batch = collator([cut(passages, stage, 0, generator, whole=whole)])["batch"]
    seconds = []
    for _ in range(1 + repeats):
        start = perf_counter()
        with torch.autocast(model.device.type, dtype, enabled=dtype == torch.bfloat16):
            loss = pretext(batch)["loss"]
        loss.backward()
        pretext.zero_grad()
        seconds.append(perf_counter() - start)
    return median(seconds[1:])


def objective_of(stage: Pretext) -> type[Objective]:
    """Return the class of the stage's objective.

    Raises:
        UserError: if there is no such objective, or it cannot be trained with the stage's
            attention.
    """
    if stage.objective not in OBJECTIVES:
        raise UserError(f"objective {stage.objective!r} is not one of {sorted(OBJECTIVES)}")
    objective = OBJECTIVES[stage.objective]
    if objective.bidirectional and stage.steps and stage.attention != "bidirectional":
        raise UserError(
            f"objective {stage.objective} needs the tokens on both sides of a token; "
            "set pretext.attention=bidirectional"
        )
    return objective


def _extended_backbone(
    recipe: Recipe, stage: Pretext, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Original]:
    """Return the backbone and its tokenizer with memory tokens, and what it computed before."""
    prompt_format = objective_of(stage).format()  # a wrong objective fails before the model loads
    bidirectional = stage.bidirectional_from_step is not None or any(
        later.attention == "bidirectional" for later in recipe.stages
    )
    model, tokenizer = load_backbone(
        recipe.backbone.name,
        dtype=dtype,
        bidirectional=bidirectional,
        trust_remote_code=recipe.backbone.trust_remote_code,
        revision=recipe.backbone.revision,
        attn_implementation=recipe.backbone.attn_implementation,
        load_in_4bit=recipe.backbone.load_in_4bit,
    )
    for later in recipe.stages:  # a name that matches nothing fails here, not after stage 1
        if later.lora is not None:
            target_modules(body_of(model), later.lora.target_modules)
    original = Original.of(model)
    tokenizer = add_memory_tokens(
        model, tokenizer, recipe.memory, recipe.seed, prompt_format, recipe.backbone.add_bos
    )
    _require_positions(stage, positions_of(model.config), tokenizer.num_special_tokens_to_add())
    return model, tokenizer, original


def _require_positions(stage: Pretext, positions: int | None, specials: int) -> None:
    """Check that the model can read the longest passage with BOS, prompts and memory tokens."""
    longest = stage.passages.max_tokens
    if positions is not None and longest + specials > positions:
        raise UserError(
            f"pretext.passages.max_tokens={longest} and {specials} special tokens need "
            f"{longest + specials} positions, and the backbone has {positions}; set "
            f"pretext.passages.max_tokens={max(1, positions - specials)} or less"
        )


def _compressor(
    recipe: Recipe, stage: Pretext, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Compressor:
    """Return the backbone with a new adapter, or with that of `start_from`."""
    torch.manual_seed(recipe.seed)  # for LoRA's initial weights
    compressor = Compressor(
        model,
        objective_of(stage).format().num_memory_embeddings(recipe.memory.tokens),
        stage.lora,
        bos_id=tokenizer.bos_token_id,
        causal=stage.attention != "bidirectional",
        scale=recipe.memory.scale,
    )
    if stage.gradient_checkpointing:
        compressor.enable_gradient_checkpointing()
    if stage.compile:
        compile_blocks(compressor.body)
    if stage.start_from:
        _start_from(compressor, stage)
    return compressor


def pretext_model(
    recipe: Recipe, stage: Pretext, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[PretextModel, Collator]:
    """Return the model that stage 1 trains, and what makes its batches."""
    compressor = _compressor(recipe, stage, model, tokenizer)
    collator = Collator(compressor.memory_ids, compressor.bos_id, tokenizer.pad_token_id)
    return PretextModel(compressor, objective_of(stage).of(tokenizer, stage)), collator


def _rows(context: StageContext[Pretext], tokenizer: PreTrainedTokenizerBase) -> Rows:
    """Return held-out passages, and the training data: one row per batch, in training order."""
    stage, seed, on_bad_row = context.stage, context.recipe.seed, context.recipe.on_bad_row
    draw = partial(
        write_passages, tokenizer=tokenizer, stage=stage, seed=seed, on_bad_row=on_bad_row
    )
    rows = world.main_first(lambda: drawn_once(context.workdir, stage, seed, on_bad_row, draw))
    context.log.write_once(stage="pretext", **rows.summary)
    return rows


def write_passages(
    files: RowFiles,
    tokenizer: PreTrainedTokenizerBase,
    stage: Pretext,
    seed: int,
    on_bad_row: str,
) -> Summary:
    """Draw the passages of stage 1, and write one row per batch and the held-out passages.

    Args:
        files: where they are written.
        tokenizer: of the backbone.
        stage: the stage.
        seed: the same seed gives the same rows in the same order.
        on_bad_row: `fail` or `skip`, as in `llm2comp.data.sources.rows`.

    Returns:
        How many passages and tokens are trained on, and what was left out.

    Raises:
        UserError: if a source cannot be read, or there are too few passages.
    """
    left_out = LeftOut()
    count = stage.steps * stage.batch_size + stage.eval_passages
    passages = draw_passages(
        stage.data, tokenizer, stage.passages, count, seed, on_bad_row, left_out
    )
    whole = objective_of(stage).whole_passage
    return write_batches(files, passages, stage, seed, whole=whole) | left_out.counts


def _start_from(compressor: Compressor, stage: Pretext) -> None:
    """Load the adapter of a trained stage 1, so that training starts from it."""
    source = released.adapter_of(str(stage.start_from))
    try:
        compressor.load_adapter(source)
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"start_from {stage.start_from!r} does not fit: its LoRA rank, target modules and "
            f"memory tokens must be the recipe's ({' '.join(str(error).split())[:160]})"
        ) from error


def _held_out_batches(
    passages: list[list[int]], objective: Objective, collator: Collator
) -> list[Batch]:
    """Return batches of at least two passages; a last passage that would be alone is left out."""
    size = held_out.BATCH
    starts = [i for i in range(0, len(passages), size) if len(passages) - i > 1]
    return [
        collator.batch(*held_out.cut(passages[i : i + size], whole_passage=objective.whole_passage))
        for i in starts
    ]


@freed_memory_returned()
def _write(context: StageContext[Pretext], adapted: Adapted, *, causal: bool) -> None:
    """Merge the adapter into the backbone, and write the encoder folder."""
    adapter = context.workdir / encoder.ADAPTER
    record = StageRecord.of(context.stage, causal=causal, lora=adapted.record)
    prompt_format = objective_of(context.stage).prompt_format
    lineage = Lineage.start(context.recipe, prompt_format).after(record)
    with saving(context):
        built = encoder.build(lineage, [adapter], compute_dtype(context.recipe.save_dtype))
        encoder.save(built, context.target, adapter, lineage)
