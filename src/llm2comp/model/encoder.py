"""The encoder folder: a plain sentence-transformers model, and how stages make it.

An encoder is its source (a backbone, or the encoder of the stage before) plus
the adapter that a stage trained, merged in float32. The folder is made of
stock modules and loads without this package.
"""

import tempfile
from pathlib import Path
from typing import cast

from peft import PeftModel
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.transformer import Transformer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2comp.errors import UserError, one_line
from llm2comp.model.backbone import body_of, load_backbone
from llm2comp.model.lineage import Lineage
from llm2comp.model.memory_tokens import add_memory_tokens, pooling
from llm2comp.model.model_card import model_card
from llm2comp.model.prompt_format import COMPRESSION, PromptFormat
from llm2comp.utils.files import atomic_folder

ADAPTER = "adapter"
"""Subfolder of an encoder folder that holds what its stage trained, in PEFT's format."""


def assemble(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    k: int,
    *,
    causal: bool,
    prompts: dict[str, str] | None = None,
    max_length: int = 512,
    prompt_format: PromptFormat = COMPRESSION,
) -> SentenceTransformer:
    """Make a sentence-transformers model of a causal LM's body with k memory rows.

    Args:
        model: causal LM, or its body, with the memory rows appended.
        tokenizer: extended by :func:`llm2comp.memory.add_memory_tokens`.
        k: number of memory tokens.
        causal: the encoder's attention, recorded in the configuration.
        prompts: for ``encode_query`` and ``encode_document``.
        max_length: tokens of a text, specials, prompts and memory not counted.
        prompt_format: of the objective that trains it.
    """
    body = body_of(model)
    body.config.is_causal = causal
    body.config.use_bidirectional_attention = not causal  # read by embedding servers
    specials = tokenizer.num_special_tokens_to_add()
    tokenizer.model_max_length = min(
        max_length + specials,
        getattr(body.config, "max_position_embeddings", max_length + specials),
    )
    with tempfile.TemporaryDirectory() as scratch:
        body.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        transformer = Transformer(scratch, unpad_inputs=False)
    modules = [transformer, *pooling(tokenizer, prompt_format, k, body.config.hidden_size)]
    return SentenceTransformer(modules=modules, prompts=prompts or {}, similarity_fn_name="cosine")


def encoder_body(encoder: SentenceTransformer) -> PreTrainedModel:
    """Return the transformers model within an encoder."""
    return cast(PreTrainedModel, encoder[0].model)


def merge(encoder: SentenceTransformer, adapter: Path) -> None:
    """Merge an adapter folder (LoRA and memory rows) into an encoder, in place.

    Raises:
        UserError: if the adapter cannot be read or is of another shape.
    """
    try:
        adapted = PeftModel.from_pretrained(encoder_body(encoder), str(adapter))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"adapter {adapter} does not fit this encoder: {one_line(error)}"
        ) from error
    encoder[0].model = adapted.merge_and_unload()
    encoder.requires_grad_(False)


def save(encoder: SentenceTransformer, folder: Path, adapter: Path, lineage: Lineage) -> None:
    """Write an encoder folder whole, with its adapter and ``llm2comp.json``."""
    with atomic_folder(folder) as partial:
        encoder.save_pretrained(str(partial), create_model_card=False)
        card = model_card(lineage, encoder_body(encoder).config.hidden_size)
        (partial / "README.md").write_text(card, encoding="utf-8")
        copy_adapter(adapter, partial / ADAPTER)
        lineage.write(partial)


def copy_adapter(source: Path, target: Path) -> None:
    """Copy the two files of an adapter folder."""
    target.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (target / name).write_bytes((source / name).read_bytes())


def build(lineage: Lineage, adapters: list[Path]) -> SentenceTransformer:
    """Build an encoder from its lineage's backbone and the adapters of its stages, in float32.

    Raises:
        UserError: if the backbone cannot be had or an adapter does not fit.
    """
    last = lineage.stages[len(adapters) - 1]
    model, tokenizer = load_backbone(lineage.backbone.name, bidirectional=not last.causal)
    tokenizer = add_memory_tokens(model, tokenizer, lineage.memory, lineage.seed, lineage.format)
    encoder = assemble(
        model,
        tokenizer,
        lineage.memory.tokens,
        causal=last.causal,
        prompts=lineage.prompts,
        max_length=lineage.max_length,
        prompt_format=lineage.format,
    )
    for adapter in adapters:
        merge(encoder, adapter)
    return encoder
