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

from llm2comp.data.pairs import dataset_names
from llm2comp.data.sources import SCORE
from llm2comp.model import encoder
from llm2comp.model.adapter_checks import check_two_views
from llm2comp.model.attention import configure_attention, record_attention
from llm2comp.model.base import freeze_word_weights, transformer_folder
from llm2comp.model.causal_lm.dropout import dropout_settings
from llm2comp.model.causal_lm.parts import positions_of
from llm2comp.model.causal_lm.probe import probe_encoder
from llm2comp.model.lineage import Lineage, StageRecord
from llm2comp.model.lora import add_adapter
from llm2comp.model.lora_targets import Adapted, adapted_layers
from llm2comp.model.prompt_format import trained_prompts
from llm2comp.recipe import Contrastive, Supervised, Unsupervised
from llm2comp.training.guarded_trainer import MEMORY_EMBEDDINGS, beginnings
from llm2comp.training.losses.matryoshka import matryoshka
from llm2comp.training.monitoring.development import DevelopmentWatch
from llm2comp.training.monitoring.divergence import saving
from llm2comp.training.monitoring.progress import TokenCounter
from llm2comp.training.monitoring.watches import CollapseWatch
from llm2comp.training.stage_context import StageContext
from llm2comp.training.trainer import (
    AdapterCheckpoints,
    compile_blocks,
    load_trained,
    log_trained,
    run_training,
    save_trained,
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
    """Train a new adapter, or all weights, of an encoder, and write the next encoder folder.

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
    if isinstance(data, DatasetDict):
        # Each dataset has a loss, in a torch module of the dataset's name: it may have no dots.
        data = DatasetDict({name.replace(".", "%2E"): part for name, part in data.items()})
    prompts = _prompts_in_training(context)
    adapted, step = _train(
        context, context.source, data, held_out, batch_sampler, attention_dropout, prompts
    )
    free_unused_memory()  # because the encoder is loaded next, in float32
    _write(context, context.source, adapted, prompts, step)


def _train(
    context: StageContext[Unsupervised | Supervised],
    source: Path,
    data: Dataset | DatasetDict,
    held_out: Sequence[tuple[str, str]],
    batch_sampler: BatchSamplers | type[DefaultBatchSampler],
    attention_dropout: float,
    prompts: dict[str, str],
) -> tuple[Adapted | None, int]:
    """Train, and write what was trained into the work folder.

    Returns:
        What the adapter adapts (None if all weights were trained), and the step that was kept.
    """
    stage, recipe = context.stage, context.recipe
    num_memory_tokens = context.lineage.num_memory_tokens
    dtype = compute_dtype(recipe.backbone.dtype)
    model = _load(context, source, dtype, attention_dropout)
    saved_length = model.max_seq_length
    model.max_seq_length = _length_in_training(context, model)
    torch.manual_seed(recipe.seed)  # for LoRA's initial weights
    body = encoder.encoder_body(model)
    adapted = None
    if stage.lora is None:
        model.requires_grad_(True)
        freeze_word_weights(model)
    else:
        adapted = add_adapter(body, stage.lora, num_memory_tokens)
    same_text = isinstance(stage, Unsupervised) and stage.views == "dropout"
    if same_text:
        check_two_views(model, data["anchor"][0])
    layers = None if adapted is None else adapted_layers(adapted)
    log_trained(context, layers)
    if stage.gradient_checkpointing:
        body.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    if stage.compile:
        compile_blocks(body)
    rate = stage.memory_learning_rate if num_memory_tokens else None
    arguments = SentenceTransformerTrainingArguments(
        **training_arguments(context, dtype),
        learning_rate_mapping={MEMORY_EMBEDDINGS: rate} if rate else {},
        batch_sampler=batch_sampler,
        prompts=_by_column(prompts, stage, data),
    )
    trainer = ContrastiveTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        loss=matryoshka(
            model, _losses(model, stage, data, gather=arguments.world_size > 1), stage.matryoshka
        ),
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
    watch = DevelopmentWatch.of(
        context, trainer, model, saved_length, _lineage_to_store(context).prompts, dtype
    )
    counter = TokenCounter()
    model[0].register_forward_pre_hook(lambda _, inputs: counter.add(inputs[0]["attention_mask"]))
    run_training(trainer, context, counter)
    if adapted is None:
        save_trained(model, context.workdir)
    else:
        adapted.save_pretrained(str(context.workdir / encoder.ADAPTER), save_embedding_layers=False)
    return layers, watch.kept_step if watch else stage.steps


def _prompts_in_training(context: StageContext[Unsupervised | Supervised]) -> dict[str, str]:
    """Return what stage 3 puts before queries and documents: with a base, the encoder's prompts.

    They are then before a text in training as `encode_query` and `encode_document` put them later.
    """
    if context.recipe.base is None or not isinstance(context.stage, Supervised):
        return {}
    prompts = context.lineage.prompts
    return {name: prompts[name] for name in ("query", "document") if prompts.get(name)}


def _by_column(
    prompts: dict[str, str], stage: Contrastive, data: Dataset | DatasetDict
) -> dict[str, dict[str, str]]:
    """Return the prompt of each column, by the name of the dataset.

    The texts of a pair with a score are of one kind and have none. Queries with an instruction have
    it already.
    """
    if not prompts:
        return {}
    names = (name.replace(".", "%2E") for name in dataset_names(stage.data))
    sources = dict(zip(names, stage.data, strict=True))
    columns: dict[str, dict[str, str]] = {}
    for name, part in data.items():
        texts = [] if SCORE in part.column_names else part.column_names
        columns[name] = dict.fromkeys(texts, prompts.get("document", ""))
        if texts:
            bare = not sources[name].query_instruction
            columns[name]["anchor"] = prompts.get("query", "") if bare else ""
    return columns


def _attention(stage: Contrastive) -> dict[str, bool | None]:
    """Return the change of the encoder's configuration; none if the stage keeps its attention.

    `use_bidirectional_attention` makes Gemma 3 bidirectional whatever `is_causal` says.
    """
    if stage.attention == "causal":
        return {"is_causal": True, "use_bidirectional_attention": None}
    return {} if stage.attention is None else {"is_causal": False}


def _load(
    context: StageContext[Unsupervised | Supervised],
    source: Path,
    dtype: torch.dtype,
    attention_dropout: float,
) -> SentenceTransformer:
    """Return the encoder to train on, with frozen weights.

    Raises:
        UserError: if it is of ours and does not pass the probe, for example because its attention
            cannot become bidirectional.
    """
    stage = context.stage
    code = context.recipe.backbone.trust_remote_code
    config = AutoConfig.from_pretrained(transformer_folder(source), trust_remote_code=code)
    dropout = dropout_settings(config, attention_dropout)
    model = SentenceTransformer(
        str(source),
        device=None if torch.cuda.is_available() else "cpu",
        # Weights that train are float32, because bfloat16 would lose small updates.
        model_kwargs={"dtype": torch.float32 if stage.lora is None else dtype},
        config_kwargs=dropout | _attention(stage),
        trust_remote_code=code,
    )
    require_finite(model, f"encoder {str(source)!r}", "remove this folder and train it again")
    configure_attention(encoder.encoder_body(model))
    model.requires_grad_(False)
    if context.lineage.method is not None:
        probe_encoder(encoder.encoder_body(model).train(False), str(source))
    return model


def _length_in_training(
    context: StageContext[Unsupervised | Supervised], model: SentenceTransformer
) -> int:
    """Return the tokens of a text in training, memory tokens included."""
    wanted = context.stage.max_length + model.tokenizer.num_special_tokens_to_add()
    limits = [positions_of(encoder.encoder_body(model).config)]
    if context.lineage.method is None:
        limits.append(model.max_seq_length)
    shortest: int = min([wanted, *(limit for limit in limits if limit)])
    return shortest


def _lineage_to_store(context: StageContext[Unsupervised | Supervised]) -> Lineage:
    """Return the lineage before the stage, with the prompts that the encoder has after it."""
    lineage = context.lineage
    if not isinstance(context.stage, Supervised):
        return lineage
    given = context.recipe.given_prompts
    stored = trained_prompts(lineage.prompts, given, context.stage.data)
    return lineage.model_copy(update={"prompts": stored})


def _write(
    context: StageContext[Unsupervised | Supervised],
    source: Path,
    adapted: Adapted | None,
    prompts: dict[str, str],
    step: int,
) -> None:
    """Put what was trained into the source encoder, and write the next encoder folder."""
    stage, lineage = context.stage, _lineage_to_store(context)
    trained = SentenceTransformer(
        str(source),
        device="cpu",
        trust_remote_code=context.recipe.backbone.trust_remote_code,
        model_kwargs={"dtype": torch.float32},
        config_kwargs=_attention(stage),
    )
    trained.prompts = {**trained.prompts, **lineage.prompts}
    with saving(context):
        adapter = None
        if adapted is None:
            load_trained(trained, context.workdir)
        else:
            adapter = context.workdir / encoder.ADAPTER
            encoder.merge(trained, adapter)
        causal = None
        if lineage.method is not None:
            config = encoder.encoder_body(trained).config
            causal = bool(config.is_causal)
            record_attention(config, causal=causal)
        lora = {} if adapted is None else adapted.record
        record = StageRecord.of(stage, causal=causal, lora=lora, prompts=prompts, step=step)
        encoder.save(trained, context.target, adapter, lineage.after(record), source)


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
