"""A dry run before a stage: all that comes after its training, on a model that is not trained.

Whatever fails after hours of training could have been known before. So each stage begins with a
look at the disk, at the LoRA of every stage to come, and at an encoder of few layers with random
weights that is assembled, merged, saved and loaded again, as the trained one will be.
"""

import shutil
import tempfile
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from llm2comp.errors import UserError, counted, one_line
from llm2comp.inference.vector_format import require_dim
from llm2comp.model import encoder
from llm2comp.model.backbone import backbone_folder
from llm2comp.model.causal_lm.dropout import remove_dropout
from llm2comp.model.causal_lm.few_layers import layers_of_each_kind, random_model, with_layers
from llm2comp.model.causal_lm.parts import body_of, token_table
from llm2comp.model.lineage import Lineage, StageRecord
from llm2comp.model.loading import four_bit
from llm2comp.model.loading.checkpoint import read_config, read_tokenizer
from llm2comp.model.lora import add_adapter, trainable_parameters
from llm2comp.model.lora_targets import adapted_layers
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.recipe import Contrastive, Pretext, Recipe, Stage, StageBase
from llm2comp.training.losses.matryoshka import require_dims
from llm2comp.training.planning.fitting import named_by, require_fitting
from llm2comp.training.pretext import objective_of
from llm2comp.training.stage_context import StageContext
from llm2comp.utils.hardware import compute_dtype

DRY_RUN = "dry-run"
"""Part of the name of the folder that a dry run writes and removes."""
CHECKPOINT_BYTES = 12
"""Of a number that trains: itself and AdamW's two moments, in float32."""
CHECKPOINTS = 3
"""At once: the Trainer keeps two, and removes the older one when the third is written. The best
one may be kept beside them."""


@torch.random.fork_rng(devices=[])
def rehearse(context: StageContext[Stage]) -> None:
    """Check that what follows the training of a stage will succeed, before its first step.

    Args:
        context: the stage.

    Raises:
        UserError: if the encoder lacks what the stages train, the disk is too small, the LoRA of
            this or a later stage fits no layer, or the encoder that is saved would not load again
            or would encode otherwise.
    """
    backbone, lineage = context.recipe.backbone, _lineage(context)
    stages = context.recipe.stages
    remaining = stages[[stage.stage for stage in stages].index(context.stage.stage) :]
    require_fitting(context.recipe, lineage)
    if lineage.method is None:
        _rehearse_others(context, lineage, remaining)
        return
    config, tokenizer = _read(context)
    head, code = context.source is None, backbone.trust_remote_code
    whole = body_of(random_model(config, head=head, device="meta", trust_remote_code=code))
    _require_matryoshka(context.recipe, token_table(whole).weight.shape[1])
    trained = count_trained(whole, remaining, lineage)
    _require_space(context, sum(p.numel() for p in whole.parameters()), trained)
    _say_4bit(context, whole)
    small = with_layers(config, layers_of_each_kind(config, whole))
    try:
        body = body_of(random_model(small, head=head, device="cpu", trust_remote_code=code))
    except Exception as error:  # the settings of some architectures depend on each other
        context.log.console.print(
            f"{config.model_type} cannot be cut to few layers, so saving is not rehearsed "
            f"({one_line(error)})",
            markup=False,
        )
        return
    _scale(body)
    _save_and_load(context, lineage, body, tokenizer)


def _scale(body: PreTrainedModel) -> None:
    """Draw weights that give states as large as those of a trained model.

    Most models begin with so small weights that attention hardly moves the states. The probe of a
    saved encoder would not see what it looks for.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in body.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)


def _rehearse_others(
    context: StageContext[Stage], lineage: Lineage, remaining: list[Stage]
) -> None:
    """Check what follows the training of an encoder of others, on the encoder itself.

    Its modules need not be able to have few layers, so it is saved and loaded whole.

    Raises:
        UserError: as `rehearse`.
    """
    model = SentenceTransformer(
        str(context.source),
        device="cpu",
        trust_remote_code=context.recipe.backbone.trust_remote_code,
        model_kwargs={"dtype": torch.float32},
    )
    _require_matryoshka(context.recipe, require_dim(model, None))
    body = encoder.encoder_body(model)
    trained = count_trained(body, remaining, lineage)
    _require_space(context, sum(p.numel() for p in model.parameters()), trained)
    _say_4bit(context, body)
    _train_nothing_and_save(context, model, body, lineage, causal=None)


def _require_matryoshka(recipe: Recipe, dimension: int) -> None:
    """Check the dimensions that all stages nest, so that none is wrong after hours."""
    for stage in recipe.stages:
        if isinstance(stage, Contrastive):
            with named_by(recipe):
                require_dims(stage.stage, stage.matryoshka, dimension)


def _say_4bit(context: StageContext[Stage], body: PreTrainedModel) -> None:
    """Say what weights in 4 bits save, if the stage trains on such."""
    backbone = context.recipe.backbone
    if not backbone.load_in_4bit:
        return
    dtype = compute_dtype(backbone.dtype)
    whole, small = (four_bit.bytes_of(body, dtype, load_in_4bit=each) for each in (False, True))
    context.log.console.print(
        f"frozen weights in 4 bits: {small / 1e9:.2f} GB in place of {whole / 1e9:.2f} GB"
    )


def count_trained(body: PreTrainedModel, stages: list[Stage], lineage: Lineage) -> list[int]:
    """Return the number of parameters that each stage trains.

    Raises:
        UserError: if the LoRA of a stage fits no layer of the body.
    """
    counts = {"null": sum(parameter.numel() for parameter in body.parameters())}
    settings = [stage.lora.model_dump_json() if stage.lora else "null" for stage in stages]
    for stage, lora in zip(stages, settings, strict=True):
        if stage.lora is not None and lora not in counts:
            adapted = add_adapter(body, stage.lora, _memory_embeddings(stage, lineage))
            counts[lora] = sum(p.numel() for p in trainable_parameters(adapted).values())
            adapted.unload()
    return [counts[lora] for lora in settings]


def _lineage(context: StageContext[Stage]) -> Lineage:
    """Return the lineage of the encoder before the stage."""
    if context.source is not None:
        return context.lineage
    assert isinstance(context.stage, Pretext)
    return Lineage.start(context.recipe, objective_of(context.stage).prompt_format)


def _read(context: StageContext[Stage]) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Return the configuration and the tokenizer of what the stage trains."""
    backbone, source = context.recipe.backbone, context.source
    trust = {"trust_remote_code": backbone.trust_remote_code}
    if source is None:
        code = backbone.trust_remote_code
        folder, name = backbone_folder(backbone.name, backbone.revision, code=code), backbone.name
    else:
        folder, name = source, str(source)
    config = read_config(folder, name, **trust)
    remove_dropout(config)
    return config, read_tokenizer(folder, name, **trust)


def _memory_embeddings(stage: StageBase, lineage: Lineage) -> int:
    """Return the number of memory embeddings that a stage trains."""
    if isinstance(stage, Pretext) and lineage.method is not None:
        _, memory, prompt_format = lineage.method
        return prompt_format.num_memory_embeddings(memory.tokens)
    return lineage.num_memory_tokens


def disk_needed(size: int, trained: list[int], *, keeps_best: bool) -> int:
    """Return the bytes that a run writes: its encoder folders, adapters and checkpoints.

    The folder `model` has the weights of the last stage's folder, which are on the disk once.

    Args:
        size: bytes of the weights of an encoder folder.
        trained: parameters that each stage trains.
        keeps_best: whether the checkpoint of the best step is kept too.
    """
    checkpoints = (CHECKPOINTS + keeps_best) * CHECKPOINT_BYTES * max(trained)
    return len(trained) * size + checkpoints + 4 * sum(trained)


def _require_space(context: StageContext[Stage], numbers: int, trained: list[int]) -> None:
    """Check that the disk holds what the rest of the run writes.

    Args:
        context: the stage.
        numbers: parameters of an encoder.
        trained: parameters that each remaining stage trains.

    Raises:
        UserError: with the space that is needed and the space that is free.
    """
    during = context.recipe.evaluation.during
    keeps_best = during is not None and during.keep_best
    size = numbers * compute_dtype(context.recipe.save_dtype).itemsize
    needed = disk_needed(size, trained, keeps_best=keeps_best)
    written = sum(file.stat().st_size for file in context.workdir.rglob("*") if file.is_file())
    out = context.target.parent
    free = shutil.disk_usage(out).free
    if needed - written > free:
        raise UserError(
            f"{out} is on a disk with {free / 1e9:.1f} GB free, and the run needs "
            f"{(needed - written) / 1e9:.1f} GB: {counted(len(trained), 'encoder folder')} of "
            f"{size / 1e9:.1f} GB and checkpoints; free some space or give another --out"
        )


def _save_and_load(
    context: StageContext[Stage],
    lineage: Lineage,
    body: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write an encoder as the stage will; `encoder.save` loads it again and compares.

    Raises:
        UserError: if it would not load again, or encode otherwise.
    """
    assert lineage.method is not None
    backbone, memory, prompt_format = lineage.method
    if context.source is None:
        tokenizer = add_memory_tokens(
            body, tokenizer, memory, lineage.seed, prompt_format, backbone.add_bos
        )
    causal = _is_causal(context.stage, body)
    built = encoder.assemble(
        body,
        tokenizer,
        memory.tokens,
        causal=causal,
        prompts=lineage.prompts,
        max_length=int(lineage.max_length or 0),
        prompt_format=prompt_format,
    )
    _train_nothing_and_save(context, built, body, lineage, causal=causal)


def _train_nothing_and_save(
    context: StageContext[Stage],
    model: SentenceTransformer,
    body: PreTrainedModel,
    lineage: Lineage,
    *,
    causal: bool | None,
) -> None:
    """Write an encoder as if its stage had just been trained, into a folder that is removed.

    Args:
        context: the stage.
        model: the encoder.
        body: its transformer.
        lineage: of the encoder before the stage.
        causal: whether its attention is causal after the stage, as `StageRecord` has it.

    Raises:
        UserError: if it would not load again, or encode otherwise.
    """
    stage, adapter, dtype = context.stage, None, compute_dtype(context.recipe.save_dtype)
    # Beside the run and not in /tmp, which may be in memory.
    with tempfile.TemporaryDirectory(prefix=f".{DRY_RUN}.", dir=context.target.parent) as scratch:
        record = StageRecord.of(stage, causal=causal, lora={})
        if stage.lora is not None:
            adapter = Path(scratch) / encoder.ADAPTER
            # Names of late blocks match nothing here. They were looked for in the whole model.
            lora = stage.lora.model_copy(update={"target_modules": None})
            adapted = add_adapter(body, lora, _memory_embeddings(stage, lineage))
            adapted.save_pretrained(str(adapter), save_embedding_layers=False)
            record = StageRecord.of(stage, causal=causal, lora=adapted_layers(adapted).record)
            adapted.unload()
            encoder.merge(model, adapter, dtype)
        encoder.convert(model, dtype)
        try:
            folder = Path(scratch) / "encoder"
            encoder.save(model, folder, adapter, lineage.after(record), context.source)
        except UserError as error:
            recipe = context.recipe
            start = f"base {recipe.base!r}" if recipe.base else f"backbone {recipe.backbone.name!r}"
            raise UserError(
                f"{start} fails in a dry run of what follows the training: {error}"
            ) from error


def _is_causal(stage: StageBase, body: PreTrainedModel) -> bool:
    """Return whether an encoder is causal after a stage."""
    if isinstance(stage, Pretext) and stage.bidirectional_from_step is not None:
        return False
    if stage.attention is None:
        return bool(getattr(body.config, "is_causal", True))
    return stage.attention == "causal"
