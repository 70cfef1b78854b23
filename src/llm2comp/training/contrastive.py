"""What UCL and SCL share: contrastive training from one encoder folder to the next."""

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset, DatasetDict
from peft import PeftModel
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.losses.merged_forward import column_merging_disabled
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.training_args import BatchSamplers
from transformers import AutoConfig

from llm2comp.data.pairs import module_name
from llm2comp.data.sources import SCORE
from llm2comp.model import encoder
from llm2comp.model.adapter_checks import check_two_views
from llm2comp.model.attention import configure_attention, record_attention
from llm2comp.model.base import freeze_word_weights, transformer_folder
from llm2comp.model.causal_lm.dropout import dropout_settings
from llm2comp.model.causal_lm.parts import positions_of
from llm2comp.model.causal_lm.probe import probe_encoder
from llm2comp.model.lineage import Lineage, StageRecord
from llm2comp.model.loading import four_bit
from llm2comp.model.lora import add_adapter
from llm2comp.model.lora_targets import Adapted, adapted_layers
from llm2comp.model.matryoshka.nested_tokens import append_nested_tokens
from llm2comp.model.multi_vector.memory_vectors import append_memory_vectors
from llm2comp.model.prompt_format import own_prompts, trained_prompts
from llm2comp.recipe import Contrastive, Recipe, Supervised, Unsupervised
from llm2comp.recipe_parts import dataset_names
from llm2comp.training.distributed import world
from llm2comp.training.distributed.sharded import is_divided
from llm2comp.training.distributed.shares import as_part_of_a_sum
from llm2comp.training.guarded_trainer import MEMORY_EMBEDDINGS, beginnings
from llm2comp.training.losses.choose import losses_of
from llm2comp.training.losses.gathered import Gathered
from llm2comp.training.losses.length_sorted import LengthSorted
from llm2comp.training.losses.matryoshka import matryoshka
from llm2comp.training.losses.reading import with_reading
from llm2comp.training.mining.rounds import RoundOver, begin_round
from llm2comp.training.monitoring.development import DevelopmentWatch
from llm2comp.training.monitoring.divergence import saving
from llm2comp.training.monitoring.progress import TokenCounter
from llm2comp.training.monitoring.watches import CollapseWatch, prompts_of, scores_of
from llm2comp.training.stage_context import StageContext
from llm2comp.training.trainer import (
    AdapterCheckpoints,
    compile_blocks,
    load_trained,
    log_trained,
    run_training,
    save_trained,
    trained_tensors,
    training_arguments,
)
from llm2comp.utils.finite import require_finite
from llm2comp.utils.hardware import compute_dtype, free_unused_memory, freed_memory_returned


class ContrastiveTrainer(AdapterCheckpoints, SentenceTransformerTrainer):
    """The Trainer of sentence-transformers, whose checkpoints hold only what trains."""

    data_collator_class = LengthSorted
    gathered: Gathered

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Add no callback, because the model card is written from the lineage."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        """Return the loss of the batch of all processes."""
        if world.size() == 1:
            return super().compute_loss(model, inputs, *args, **options)
        self.gathered.counts = inputs.pop("counts")
        # All processes must call a divided model as often, whatever their numbers of texts.
        with column_merging_disabled() if is_divided() else nullcontext():
            loss: Any = super().compute_loss(model, inputs, *args, **options)
        return as_part_of_a_sum(loss)

    def beginnings(self) -> list[str]:
        """Return how the anchors of the last batch begin."""
        if not self.batch:
            return []
        ids, mask = (self.batch[f"anchor_{name}"] for name in ("input_ids", "attention_mask"))
        return beginnings(ids, mask, self.model.tokenizer)


def train_contrastive(
    context: StageContext[Unsupervised | Supervised],
    data: Dataset | DatasetDict,
    held_out: Dataset,
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
        held_out: columns `anchor` and `positive` of pairs that are measured, not trained on, and
            possibly `dataset`, whose prompts they then have, and `score`.
        batch_sampler: how sentence-transformers draws batches.
        attention_dropout: dropout of attention weights, in training only.
    """
    assert context.source is not None
    if isinstance(data, DatasetDict):
        data = as_modules(data)
    prompts = prompts_in_training(context.recipe, context.stage, context.lineage)
    while True:  # once, or once for each round of mining
        with suppress(RoundOver):
            adapted, step = _train(
                context, context.source, data, held_out, batch_sampler, attention_dropout, prompts
            )
            break
        free_unused_memory()
    free_unused_memory()  # because the encoder is loaded next
    source = context.source
    world.from_main(lambda: _write(context, source, adapted, prompts, step))


def as_modules(data: DatasetDict) -> DatasetDict:
    """Return datasets under names that torch modules may have, because each has a loss."""
    return DatasetDict({module_name(name): part for name, part in data.items()})


def _train(
    context: StageContext[Unsupervised | Supervised],
    source: Path,
    data: Dataset | DatasetDict,
    held_out: Dataset,
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
    columns = prompts_by_column(prompts, stage, data, context.row_prompts)
    round_end = None
    if isinstance(stage, Supervised) and stage.mining is not None:
        supervised = cast(StageContext[Supervised], context)
        data, round_end = begin_round(supervised, model, data, columns, dtype)
        columns = prompts_by_column(prompts, stage, data, context.row_prompts)
    rate = stage.memory_learning_rate if num_memory_tokens else None
    arguments = SentenceTransformerTrainingArguments(
        **training_arguments(context, dtype),
        learning_rate_mapping={MEMORY_EMBEDDINGS: rate} if rate else {},
        batch_sampler=batch_sampler,
        prompts=columns,
        # With several processes sentence-transformers would set it, and say so.
        dataloader_drop_last=world.size() > 1,
    )
    arguments.dataloader_drop_last = False
    if isinstance(stage, Supervised) and stage.vectors == "k":
        append_memory_vectors(model, str(source), beside="training")
    if stage.matryoshka_tokens is not None:
        append_nested_tokens(model, str(source), stage.matryoshka_tokens)
    losses, gathered = losses_of(model, stage, data), Gathered()
    if world.size() > 1:
        gathered.attach_to(losses.values() if isinstance(losses, dict) else [losses])
    trainer = ContrastiveTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        loss=with_reading(context, model, matryoshka(model, losses, stage.matryoshka)),
    )
    trainer.gathered = gathered
    trainer.add_callback(
        CollapseWatch(
            model,
            list(zip(held_out["anchor"], held_out["positive"], strict=True)),
            stage.stage,
            every=stage.eval_steps,
            temperature=stage.temperature,
            dropout=same_text,
            dtype=dtype,
            log=context.log,
            prompts=prompts_of(held_out, columns),
            scores=scores_of(held_out),
        )
    )
    watch = DevelopmentWatch.of(
        context, trainer, model, saved_length, _lineage_to_store(context).prompts, dtype
    )
    if round_end is not None:
        trainer.add_callback(round_end)  # after the watch, which may end the stage
    counter = TokenCounter()
    model[0].register_forward_pre_hook(lambda _, inputs: counter.add(inputs[0]["attention_mask"]))
    run_training(trainer, context, counter)
    world.from_main(lambda: _keep_trained(model, adapted, context.workdir))
    return layers, watch.kept_step if watch else stage.steps


def _keep_trained(model: SentenceTransformer, adapted: PeftModel | None, workdir: Path) -> None:
    """Write what was trained into the work folder."""
    if adapted is None:
        save_trained(trained_tensors(model), workdir)
    else:
        adapted.save_pretrained(str(workdir / encoder.ADAPTER), save_embedding_layers=False)


def prompts_in_training(recipe: Recipe, stage: Contrastive, lineage: Lineage) -> dict[str, str]:
    """Return what stage 3 puts before queries and documents: with a base, the encoder's prompts.

    They are then before a text in training as `encode_query` and `encode_document` put them later.

    Args:
        recipe: the run.
        stage: the stage.
        lineage: of the encoder that the stage starts from.
    """
    if recipe.base is None or not isinstance(stage, Supervised):
        return {}
    prompts = lineage.prompts
    return {name: prompts[name] for name in ("query", "document") if prompts.get(name)}


def prompts_by_column(
    prompts: dict[str, str],
    stage: Contrastive,
    data: Dataset | DatasetDict,
    row_prompts: Sequence[Sequence[str]],
) -> dict[str, dict[str, str]]:
    """Return the prompt of each column, by the name of the dataset.

    The texts of a pair with a score are of one kind and have none. Queries of a source with prompts
    of its own have them already.

    Args:
        prompts: as `prompts_in_training` returns them.
        stage: the stage.
        data: its rows, as `as_modules` returns them.
        row_prompts: for each source, the prompts that its rows have.
    """
    if not prompts:
        return {}
    names = map(module_name, dataset_names(stage.data))
    own = dict(zip(names, own_prompts(stage.data, row_prompts), strict=True))
    columns: dict[str, dict[str, str]] = {}
    for name, part in data.items():
        texts = [] if SCORE in part.column_names else part.column_names
        columns[name] = dict.fromkeys(texts, prompts.get("document", ""))
        if texts:
            columns[name]["anchor"] = "" if own[name] else prompts.get("query", "")
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
    backbone = context.recipe.backbone
    code = backbone.trust_remote_code
    config = AutoConfig.from_pretrained(transformer_folder(source), trust_remote_code=code)
    dropout = dropout_settings(config, attention_dropout)
    model = SentenceTransformer(
        str(source),
        device=None if torch.cuda.is_available() else "cpu",
        # Weights that train are float32, because bfloat16 would lose small updates.
        model_kwargs={"dtype": torch.float32 if stage.lora is None else dtype}
        | (four_bit.options(dtype) if backbone.load_in_4bit else {}),
        config_kwargs=dropout | _attention(stage),
        trust_remote_code=code,
    )
    require_finite(model, f"encoder {str(source)!r}", "remove this folder and train it again")
    configure_attention(encoder.encoder_body(model), backbone.attn_implementation)
    four_bit.keep_gradients(model)
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
    stored = trained_prompts(lineage.prompts, given, context.stage.data, context.row_prompts)
    return lineage.model_copy(update={"prompts": stored})


@freed_memory_returned()
def _write(
    context: StageContext[Unsupervised | Supervised],
    source: Path,
    adapted: Adapted | None,
    prompts: dict[str, str],
    step: int,
) -> None:
    """Put what was trained into the source encoder, and write the next encoder folder."""
    stage, lineage = context.stage, _lineage_to_store(context)
    dtype = compute_dtype(context.recipe.save_dtype)
    trained = SentenceTransformer(
        str(source),
        device="cpu",
        trust_remote_code=context.recipe.backbone.trust_remote_code,
        model_kwargs={"dtype": torch.float32 if adapted is None else encoder.stored(dtype)},
        config_kwargs=_attention(stage),
    )
    trained.prompts = {**trained.prompts, **lineage.prompts}
    with saving(context):
        adapter = None
        if adapted is None:
            load_trained(trained, context.workdir)
            encoder.convert(trained, dtype)
        else:
            adapter = context.workdir / encoder.ADAPTER
            encoder.merge(trained, adapter, dtype)
        causal = None
        if lineage.method is not None:
            config = encoder.encoder_body(trained).config
            causal = bool(config.is_causal)
            record_attention(config, causal=causal)
        lora = {} if adapted is None else adapted.record
        record = StageRecord.of(
            stage,
            causal=causal,
            lora=lora,
            prompts=prompts,
            row_prompts=context.row_prompts,
            step=step,
        )
        encoder.save(trained, context.target, adapter, lineage.after(record), source)
