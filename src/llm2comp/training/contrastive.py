"""What UCL and SCL share: an encoder folder in, contrastive training, an encoder folder out."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    CoSENTLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.training_args import BatchSamplers

from llm2comp.data.sources import SCORE
from llm2comp.model import encoder
from llm2comp.model.attention import configure_attention
from llm2comp.model.lineage import Lineage, StageRecord
from llm2comp.model.lora import add_adapter
from llm2comp.recipe import Contrastive, Supervised, Unsupervised
from llm2comp.training.callbacks import CollapseWatch
from llm2comp.training.stage_context import StageContext
from llm2comp.training.trainer import (
    MEMORY_EMBEDDINGS,
    AdapterCheckpoints,
    TokenCounter,
    compile_blocks,
    run_training,
    training_arguments,
)
from llm2comp.utils.hardware import compute_dtype


class LengthSorted(SentenceTransformerDataCollator):
    """Puts the rows of a batch in the order of their length.

    No loss here depends on the order, and the cached one cuts a batch into mini-batches, each of
    which is padded to its own longest text.
    """

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch that the stock collator makes of sorted rows."""
        return super().__call__(sorted(features, key=_characters))


def _characters(row: dict[str, Any]) -> int:
    return sum(len(value) for value in row.values() if isinstance(value, str))


class ContrastiveTrainer(AdapterCheckpoints, SentenceTransformerTrainer):
    """The sentence-transformers Trainer, saving only what trains."""

    data_collator_class = LengthSorted

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Add none: the card is written from the lineage."""


def train_contrastive(
    context: StageContext[Unsupervised | Supervised],
    data: Dataset | DatasetDict,
    held_out: Sequence[tuple[str, str]],
    *,
    batch_sampler: BatchSamplers,
    attention_dropout: float = 0.0,
) -> None:
    """Train a fresh adapter on an encoder folder, and write the next one.

    Pairs are told from in-batch negatives. Pairs with scores are put in the order of their scores
    (CoSENT), because two of them may well be alike.

    Args:
        context: the stage; its ``source`` is the encoder folder to start from.
        data: columns anchor, positive and perhaps negative or score. Each batch is of one dataset.
        held_out: anchors and positives that are measured, not trained on.
        batch_sampler: of sentence-transformers.
        attention_dropout: in training only.
    """
    if isinstance(data, DatasetDict):  # a loss each, in modules of their names: no dots
        data = DatasetDict({name.replace(".", "%2E"): part for name, part in data.items()})
    assert context.source is not None
    stage, recipe = context.stage, context.recipe
    lineage = Lineage.read(context.source)
    dtype = compute_dtype(recipe.backbone.dtype)
    attention = {} if stage.attention is None else {"is_causal": stage.attention == "causal"}
    model = SentenceTransformer(
        str(context.source),
        device=None if torch.cuda.is_available() else "cpu",
        model_kwargs={"dtype": dtype},
        config_kwargs={"attention_dropout": attention_dropout, **attention},
    )
    configure_attention(encoder.encoder_body(model))
    model.requires_grad_(False)
    torch.manual_seed(recipe.seed)  # LoRA's initial weights
    tokens = lineage.format.num_memory_tokens(lineage.memory.tokens)
    adapted = add_adapter(encoder.encoder_body(model), stage.lora, tokens)
    if stage.gradient_checkpointing:
        body = encoder.encoder_body(model)
        body.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    if stage.compile:
        compile_blocks(encoder.encoder_body(model))
    model.max_seq_length = stage.max_length + model.tokenizer.num_special_tokens_to_add()
    rate = stage.memory_learning_rate if tokens else None
    arguments = SentenceTransformerTrainingArguments(
        **training_arguments(stage, context.workdir, recipe.seed, dtype),
        learning_rate_mapping={MEMORY_EMBEDDINGS: rate} if rate else {},
        batch_sampler=batch_sampler,
    )
    trainer = ContrastiveTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        loss=_losses(model, stage, data, gather=arguments.world_size > 1),
    )
    trainer.add_callback(
        CollapseWatch(
            model,
            held_out,
            stage.stage,
            every=stage.eval_steps,
            temperature=stage.temperature,
            dropout=isinstance(stage, Unsupervised),
            dtype=dtype,
            log=context.log,
        )
    )
    counter = TokenCounter()
    model[0].register_forward_pre_hook(lambda _, given: counter.add(given[0]["attention_mask"]))
    run_training(trainer, context, counter)
    adapter = context.workdir / encoder.ADAPTER
    adapted.save_pretrained(str(adapter), save_embedding_layers=False)
    merged = SentenceTransformer(str(context.source), device="cpu", config_kwargs=attention)
    encoder.merge(merged, adapter)
    config = encoder.encoder_body(merged).config
    config.use_bidirectional_attention = not config.is_causal
    lineage = lineage.after(StageRecord.of(stage, causal=config.is_causal))
    encoder.save(merged, context.target, adapter, lineage)


def _losses(
    model: SentenceTransformer,
    stage: Contrastive,
    data: Dataset | DatasetDict,
    *,
    gather: bool,
) -> torch.nn.Module | dict[str, torch.nn.Module]:
    """Return the loss, or one a dataset."""
    contrast = _info_nce(model, stage, gather=gather)
    if isinstance(data, Dataset):
        return contrast
    order = CoSENTLoss(model, scale=1.0 / stage.temperature)
    return {
        name: order if SCORE in dataset.column_names else contrast for name, dataset in data.items()
    }


def _info_nce(model: SentenceTransformer, stage: Contrastive, *, gather: bool) -> torch.nn.Module:
    """InfoNCE over in-batch negatives; cached (GradCache) only where a batch needs it.

    The two have equal gradients; the cached one costs a forward pass more.
    """
    scale = 1.0 / stage.temperature
    if stage.batch_size <= stage.mini_batch_size:
        return MultipleNegativesRankingLoss(model, scale=scale, gather_across_devices=gather)
    return CachedMultipleNegativesRankingLoss(
        model, scale=scale, mini_batch_size=stage.mini_batch_size, gather_across_devices=gather
    )
