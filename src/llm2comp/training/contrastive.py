"""What UCL and SCL share: contrastive training from one encoder folder to the next."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    CoSENTLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.training_args import BatchSamplers
from torch import Tensor
from transformers import AutoConfig

from llm2comp.data.sources import SCORE
from llm2comp.model import encoder
from llm2comp.model.adapter_checks import check_two_views
from llm2comp.model.attention import configure_attention, record_attention
from llm2comp.model.causal_lm.dropout import dropout_settings
from llm2comp.model.causal_lm.parts import positions_of
from llm2comp.model.causal_lm.probe import probe_encoder
from llm2comp.model.lineage import Lineage, StageRecord
from llm2comp.model.lora import add_adapter
from llm2comp.model.lora_targets import Adapted, adapted_layers
from llm2comp.recipe import Contrastive, Supervised, Unsupervised
from llm2comp.training.guarded_trainer import MEMORY_EMBEDDINGS, beginnings
from llm2comp.training.monitoring.development import Development, DevelopmentWatch
from llm2comp.training.monitoring.divergence import saving
from llm2comp.training.monitoring.progress import TokenCounter
from llm2comp.training.monitoring.watches import CollapseWatch
from llm2comp.training.stage_context import StageContext
from llm2comp.training.trainer import (
    AdapterCheckpoints,
    compile_blocks,
    log_adapted,
    run_training,
    training_arguments,
)
from llm2comp.utils.finite import require_finite
from llm2comp.utils.hardware import compute_dtype, free_unused_memory


class LengthSorted(SentenceTransformerDataCollator):
    """Sorts the rows of a batch by length, so that mini-batches need little padding.

    The cached loss cuts a batch into mini-batches, and each is padded to its own longest text. No
    loss here depends on the order of the rows.
    """

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch that the stock collator makes from the sorted rows."""
        return super().__call__(sorted(features, key=_characters))


def _characters(row: dict[str, Any]) -> int:
    return sum(len(value) for value in row.values() if isinstance(value, str))


class ContrastiveTrainer(AdapterCheckpoints, SentenceTransformerTrainer):
    """The Trainer of sentence-transformers, whose checkpoints hold only what trains."""

    data_collator_class = LengthSorted

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Add no callback, because the model card is written from the lineage."""

    def beginnings(self) -> list[str]:
        """Return how the anchors of the last batch begin."""
        if not self.batch:
            return []
        ids, mask = (self.batch[f"anchor_{name}"] for name in ("input_ids", "attention_mask"))
        return beginnings(ids, mask, self.model.tokenizer)


class TokenLimitedInfoNCE(CachedMultipleNegativesRankingLoss):
    """The cached loss (GradCache), whose mini-batches have a limited number of tokens.

    Padding counts, because it takes memory too. `mini_batch_num_tokens` of sentence-transformers
    does not count it: a long text among many short ones would exceed the limit many times over.

    Args:
        model: the encoder.
        tokens: the most tokens of a mini-batch. A longer text is a mini-batch of its own.
        options: of the cached loss; `mini_batch_size` limits the rows of a mini-batch.
    """

    def __init__(self, model: SentenceTransformer, tokens: int, **options: Any) -> None:
        super().__init__(model, **options)
        self.tokens = tokens

    def embed_minibatch_iter(
        self, sentence_feature: dict[str, Tensor], *args: Any, **options: Any
    ) -> Iterator[tuple[Tensor, Any]]:
        """Yield the embeddings `(rows, dimension)` of each mini-batch, and its random state."""
        lengths = sentence_feature["attention_mask"].sum(1).tolist()
        options["ranges"] = list(_token_limited(lengths, self.tokens, self.mini_batch_size))
        yield from super().embed_minibatch_iter(sentence_feature, *args, **options)


def _token_limited(lengths: Sequence[int], tokens: int, rows: int) -> Iterator[tuple[int, int]]:
    """Yield the first row of each mini-batch, and the row after its last one."""
    begin, longest = 0, 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        if row > begin and ((row + 1 - begin) * longest > tokens or row - begin == rows):
            yield begin, row
            begin, longest = row, length
    yield begin, len(lengths)


def train_contrastive(
    context: StageContext[Unsupervised | Supervised],
    data: Dataset | DatasetDict,
    held_out: Sequence[tuple[str, str]],
    *,
    batch_sampler: BatchSamplers | type[DefaultBatchSampler],
    attention_dropout: float = 0.0,
) -> None:
    """Train a new adapter on an encoder folder, merge it, and write the next encoder folder.

    Pairs are trained with InfoNCE against in-batch negatives. Pairs with scores are trained with
    CoSENT, which learns the order of the scores, because another row's text may well be similar
    and would be a false negative.

    Args:
        context: the stage; its `source` is the encoder folder to start from.
        data: columns `anchor`, `positive` and possibly `negative` or `score`. With several
            datasets, each batch comes from one of them.
        held_out: anchors and positives that are measured, not trained on.
        batch_sampler: how sentence-transformers draws batches.
        attention_dropout: dropout of attention weights, in training only.
    """
    assert context.source is not None
    adapted, step = _train(
        context, context.source, data, held_out, batch_sampler, attention_dropout
    )
    free_unused_memory()  # because the encoder is loaded next, in float32
    _write(context, context.source, adapted, step)


def _train(
    context: StageContext[Unsupervised | Supervised],
    source: Path,
    data: Dataset | DatasetDict,
    held_out: Sequence[tuple[str, str]],
    batch_sampler: BatchSamplers | type[DefaultBatchSampler],
    attention_dropout: float,
) -> tuple[Adapted, int]:
    """Train a new adapter, and write it into the work folder.

    Returns:
        What it adapts, and the step whose weights it has.
    """
    if isinstance(data, DatasetDict):
        # Each dataset has a loss, in a torch module of the dataset's name: it may have no dots.
        data = DatasetDict({name.replace(".", "%2E"): part for name, part in data.items()})
    stage, recipe = context.stage, context.recipe
    lineage = Lineage.read(source)
    num_memory_tokens = lineage.format.num_memory_tokens(lineage.memory.tokens)
    dtype = compute_dtype(recipe.backbone.dtype)
    trust_remote_code = recipe.backbone.trust_remote_code
    model = _load(source, stage, dtype, attention_dropout, trust_remote_code=trust_remote_code)
    body = encoder.encoder_body(model)
    saved_length = model.max_seq_length
    wanted = stage.max_length + model.tokenizer.num_special_tokens_to_add()
    model.max_seq_length = min(wanted, positions_of(body.config) or wanted)
    torch.manual_seed(recipe.seed)  # for LoRA's initial weights
    adapted = add_adapter(body, stage.lora, num_memory_tokens)
    same_text = isinstance(stage, Unsupervised) and stage.views == "dropout"
    if same_text:
        check_two_views(model, data["anchor"][0])
    layers = adapted_layers(adapted)
    log_adapted(context, layers)
    if stage.gradient_checkpointing:
        body.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    if stage.compile:
        compile_blocks(body)
    rate = stage.memory_learning_rate if num_memory_tokens else None
    arguments = SentenceTransformerTrainingArguments(
        **training_arguments(context, dtype),
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
            dropout=same_text,
            dtype=dtype,
            log=context.log,
        )
    )
    watch = _development_watch(trainer, model, context, saved_length, dtype)
    counter = TokenCounter()
    model[0].register_forward_pre_hook(lambda _, inputs: counter.add(inputs[0]["attention_mask"]))
    run_training(trainer, context, counter)
    adapted.save_pretrained(str(context.workdir / encoder.ADAPTER), save_embedding_layers=False)
    return layers, watch.kept_step if watch else stage.steps


def _development_watch(
    trainer: ContrastiveTrainer,
    model: SentenceTransformer,
    context: StageContext[Unsupervised | Supervised],
    max_seq_length: int | None,
    dtype: torch.dtype,
) -> DevelopmentWatch | None:
    """Let the recipe's `evaluation.during` score the encoder, if there is one."""
    evaluation = context.recipe.evaluation
    if evaluation.during is None:
        return None
    watch = DevelopmentWatch(
        trainer,
        model,
        Development(evaluation, evaluation.during),
        stage=context.stage.stage,
        max_seq_length=max_seq_length,
        dtype=dtype,
        log=context.log,
    )
    trainer.add_callback(watch)
    return watch


def _attention(stage: Contrastive) -> dict[str, bool | None]:
    """Return the change of the encoder's configuration; none if the stage keeps its attention.

    `use_bidirectional_attention` makes Gemma 3 bidirectional whatever `is_causal` says.
    """
    if stage.attention == "causal":
        return {"is_causal": True, "use_bidirectional_attention": None}
    return {} if stage.attention is None else {"is_causal": False}


def _load(
    source: Path,
    stage: Contrastive,
    dtype: torch.dtype,
    attention_dropout: float,
    *,
    trust_remote_code: bool,
) -> SentenceTransformer:
    """Return the encoder to train on, with frozen weights.

    Raises:
        UserError: if it does not pass the probe, for example because its attention cannot become
            bidirectional.
    """
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    dropout = dropout_settings(config, attention_dropout)
    model = SentenceTransformer(
        str(source),
        device=None if torch.cuda.is_available() else "cpu",
        trust_remote_code=trust_remote_code,
        model_kwargs={"dtype": dtype},
        config_kwargs=dropout | _attention(stage),
    )
    require_finite(model, f"encoder {str(source)!r}", "remove this folder and train it again")
    configure_attention(encoder.encoder_body(model))
    probe_encoder(encoder.encoder_body(model).train(False), str(source))
    model.requires_grad_(False)
    return model


def _write(
    context: StageContext[Unsupervised | Supervised], source: Path, adapted: Adapted, step: int
) -> None:
    """Merge the adapter into the source encoder, and write the next encoder folder."""
    stage, adapter = context.stage, context.workdir / encoder.ADAPTER
    merged = SentenceTransformer(
        str(source),
        device="cpu",
        trust_remote_code=context.recipe.backbone.trust_remote_code,
        config_kwargs=_attention(stage),
    )
    with saving(context):
        encoder.merge(merged, adapter)
        config = encoder.encoder_body(merged).config
        record_attention(config, causal=config.is_causal)
        record = StageRecord.of(stage, causal=config.is_causal, lora=adapted.record, step=step)
        encoder.save(merged, context.target, adapter, Lineage.read(source).after(record), source)


def _losses(
    model: SentenceTransformer,
    stage: Contrastive,
    data: Dataset | DatasetDict,
    *,
    gather: bool,
) -> torch.nn.Module | dict[str, torch.nn.Module]:
    """Return the loss or, with several datasets, the loss of each."""
    info_nce = _info_nce(model, stage, gather=gather)
    if isinstance(data, Dataset):
        return info_nce
    cosent = CoSENTLoss(model, scale=1.0 / stage.temperature)
    return {
        name: cosent if SCORE in dataset.column_names else info_nce
        for name, dataset in data.items()
    }


def _info_nce(model: SentenceTransformer, stage: Contrastive, *, gather: bool) -> torch.nn.Module:
    """Return InfoNCE with in-batch negatives.

    The cached version (GradCache) is used only if a batch does not fit in one mini-batch, because
    it has the same gradient but costs one more forward pass.
    """
    options: dict[str, Any] = {"scale": 1.0 / stage.temperature, "gather_across_devices": gather}
    rows, tokens = stage.mini_batch_size, stage.mini_batch_tokens
    if tokens is not None:
        return TokenLimitedInfoNCE(model, tokens, mini_batch_size=rows, **options)
    if stage.batch_size <= rows:
        return MultipleNegativesRankingLoss(model, **options)
    return CachedMultipleNegativesRankingLoss(model, mini_batch_size=rows, **options)
