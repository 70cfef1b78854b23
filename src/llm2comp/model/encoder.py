"""The encoder folder: a plain sentence-transformers model, and how stages make it.

An encoder is a backbone, or the encoder of the stage before, with the adapter that a stage trained
merged in float32. The folder is written in the precision that the recipe names. It consists of
stock modules and loads without this package.
"""

import json
import logging
import shutil
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Literal, cast

import torch
import transformers
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.transformer import Transformer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2comp.errors import BrokenModelError, UserError, one_line
from llm2comp.model.attention import changes_window, record_attention
from llm2comp.model.backbone import load_backbone
from llm2comp.model.causal_lm.parts import body_of, positions_of, token_table
from llm2comp.model.causal_lm.probe import probe_encoder
from llm2comp.model.folder.card import model_card
from llm2comp.model.folder.in_float32 import InFloat32
from llm2comp.model.folder.layout import keep_layout, write_layout
from llm2comp.model.folder.reference import (
    SAME,
    SAME_ELSEWHERE,
    SAME_IN_HALF,
    TEXTS,
    Reference,
    embed_alone,
)
from llm2comp.model.lineage import Lineage
from llm2comp.model.loading.stock_module import has_own_code, module_around
from llm2comp.model.loading.tokenizer import FILE as TOKENIZER
from llm2comp.model.loading.tokenizer import read_alike, without_special_tokens
from llm2comp.model.lora import require_whole
from llm2comp.model.memory_tokens import add_memory_tokens, pooling_modules
from llm2comp.model.prompt_format import DEFAULT_FORMAT, PromptFormat
from llm2comp.utils.checksums import write_checksums
from llm2comp.utils.files import atomic_folder
from llm2comp.utils.finite import require_finite

logger = logging.getLogger(__name__)

ADAPTER = "adapter"
"""Subfolder of an encoder folder with the adapter of its last stage, in PEFT's format."""


def assemble(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    k: int,
    *,
    causal: bool,
    prompts: dict[str, str] | None = None,
    max_length: int = 512,
    prompt_format: PromptFormat = DEFAULT_FORMAT,
) -> SentenceTransformer:
    """Make a sentence-transformers model from a causal language model with memory tokens.

    The encoder takes over the body's weights, so that no second copy of them is in memory, and
    stays on their device: a GPU that trains a backbone in bfloat16 may be too small for float32.

    Args:
        model: causal language model, or its body, with memory embeddings appended.
        tokenizer: as `llm2comp.model.memory_tokens.add_memory_tokens` returns it.
        k: number of memory tokens in the recipe.
        causal: whether the encoder's attention is causal; the model's configuration records it.
        prompts: for `encode_query` and `encode_document`.
        max_length: tokens per text, without BOS, prompts and memory tokens.
        prompt_format: what surrounds a text and what is pooled.

    Raises:
        UserError: if the model's positions are too few for prompts and memory tokens, or if
            transformers loads another tokenizer for a model of this type.
    """
    body = body_of(model)
    record_attention(body.config, causal=causal)
    specials = tokenizer.num_special_tokens_to_add()
    positions = positions_of(body.config) or max_length + specials
    if positions <= specials:
        raise UserError(
            f"the model has {positions} positions, and prompts and memory tokens take {specials}; "
            "lower memory.tokens"
        )
    tokenizer.model_max_length = min(max_length + specials, positions)
    transformer = module_around(body, tokenizer, Transformer)
    loaded = cast(PreTrainedTokenizerBase, transformer.tokenizer)
    if not read_alike(loaded, tokenizer):
        raise UserError(
            f"transformers loads a {type(loaded).__name__} for every model of the type "
            f"{body.config.model_type}, and the backbone's tokenizer.json gives other ids; take a "
            "backbone with the tokenizer of its type"
        )
    # An OPT may have wider states inside than those that it reads and returns.
    rows, hidden = token_table(body).weight.shape
    modules = [transformer, *pooling_modules(tokenizer, prompt_format, k, rows, hidden)]
    return SentenceTransformer(
        modules=modules,
        device=str(body.device),
        prompts=prompts or {},
        similarity_fn_name="cosine",
    )


def encoder_body(encoder: SentenceTransformer) -> PreTrainedModel:
    """Return the transformers model inside an encoder."""
    return cast(PreTrainedModel, encoder[0].model)


def merge(encoder: SentenceTransformer, adapter: Path, dtype: torch.dtype = torch.float32) -> None:
    """Merge an adapter, LoRA factors and memory embeddings, into an encoder.

    Each weight is merged in float32 and rounded once. Weights that were loaded are mapped from
    their file. A merged weight has memory of its own, so that there is no second copy of them.

    Args:
        encoder: changed in place.
        adapter: folder in PEFT's format.
        dtype: of the weights afterwards.

    Raises:
        UserError: if the adapter cannot be read, or its shape does not fit the encoder.
        BrokenModelError: if the merged weights are not finite.
    """
    try:
        adapted = PeftModel.from_pretrained(encoder_body(encoder), str(adapter))
        require_whole(adapted, adapter)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"adapter {adapter} does not fit this encoder: {one_line(error)}"
        ) from error
    for layer in cast(nn.Module, adapted).modules():
        if isinstance(layer, BaseTunerLayer):
            weight = cast(nn.Parameter, layer.get_base_layer().weight)
            weight.data = weight.data.to(torch.float32, copy=dtype != torch.float32)
            layer.merge()
            weight.data = weight.data.to(dtype)
    encoder[0].model = adapted.unload()
    encoder.requires_grad_(False)
    convert(encoder, dtype)
    remedy = "take another adapter, or train it again with a lower learning rate"
    require_finite(encoder, f"the encoder with adapter {adapter} merged", remedy)


def stored(dtype: torch.dtype) -> torch.dtype | Literal["auto"]:
    """Return the precision in which to load weights that will be merged and written in another.

    Weights that are loaded as their file has them take no memory until they are merged. float32 is
    loaded as float32, because a model in half precision rounds constants when it is made.

    Args:
        dtype: of the weights that will be written.
    """
    return torch.float32 if dtype == torch.float32 else "auto"


def convert(encoder: SentenceTransformer, dtype: torch.dtype) -> None:
    """Round the weights of an encoder's transformer to a precision, in place, one by one.

    Other modules, such as a dense layer, keep theirs. Buffers do too: they are not saved.
    """
    for parameter in encoder_body(encoder).parameters():
        parameter.data = parameter.data.to(dtype)


def save(
    encoder: SentenceTransformer,
    folder: Path,
    adapter: Path | None,
    lineage: Lineage,
    source: Path | None = None,
) -> None:
    """Write an encoder folder with its adapter, its lineage and its model card, and check it.

    The check loads the folder with stock sentence-transformers and compares its embeddings with
    those of the encoder. An encoder of ours is probed. Of one of others, a text in a batch must
    have the embedding that it has alone.

    Args:
        encoder: to save, in the precision of its weights. They are given back before the folder is
            loaded, so that there are never two copies in memory.
        folder: to write; it appears only when it is complete and right.
        adapter: folder of the adapter that the last stage trained; None if it trained all weights.
        lineage: of the encoder.
        source: encoder folder that the encoder was loaded from; its tokenizer is kept.

    Raises:
        UserError: if the folder does not pass the check.
        BrokenModelError: if weights or embeddings are not finite, or embeddings are zero.
    """
    remedy = f"{folder} is not written"
    require_finite(encoder, "the encoder", remedy)
    if changes_window(encoder_body(encoder).config):  # of others; ours do not have the setting
        raise UserError(
            f"transformers {transformers.__version__} halves the sliding window of this encoder "
            f"each time that it is saved and loaded; {remedy}: install transformers>=5.23"
        )
    half = encoder_body(encoder).dtype == torch.bfloat16
    exactly = InFloat32 if half else nullcontext
    with exactly():
        expected = embed_alone(encoder)
    if not (expected.isfinite().all() and expected.any(1).all()):
        raise BrokenModelError(f"the embeddings of the encoder are zero or not finite; {remedy}")
    reference = Reference.of(expected)
    own_code = has_own_code(encoder_body(encoder))
    with atomic_folder(folder) as partial:
        encoder.save_pretrained(str(partial), create_model_card=False)
        needed = _write_small_files(encoder, partial, lineage, source)
        encoder.to("meta")
        try:
            stock = SentenceTransformer(str(partial), device="cpu", trust_remote_code=own_code)
        except Exception as error:  # transformers raises whatever comes up
            raise UserError(
                f"{folder} is not written, because it would not load again "
                f"({type(error).__name__}: {one_line(error)}); choose another backbone"
            ) from error
        last = lineage.stages[-1]
        with exactly():
            if lineage.method is not None:
                attention = probe_encoder(encoder_body(stock), str(folder))
                last = last.model_copy(update=asdict(attention))
            else:
                require_independent(stock, str(folder))
            difference = reference.difference(stock)
        if not difference <= (SAME_ELSEWHERE if half else SAME):
            raise UserError(
                f"its embeddings differ from those in memory by a cosine distance of "
                f"{difference:.1e}; {folder} is not written"
            )
        rounding = reference.difference(stock) if half else 0.0
        if not rounding <= SAME_IN_HALF:
            logger.warning(
                "%s: its embeddings in bfloat16, in which clients load it, differ from those in "
                "float32 by a cosine distance of %.1e; load it in float32, or train with "
                "save_dtype=float32",
                folder,
                rounding,
            )
        stages = [*lineage.stages[:-1], last]
        dtype = "bfloat16" if half else None
        lineage = lineage.model_copy(
            update={"stages": stages, "reference": reference, "dtype": dtype}
        )
        lineage = lineage.without_paths()
        card = model_card(lineage, expected.shape[1], needed)
        (partial / "README.md").write_text(card, encoding="utf-8")
        if adapter is not None:
            copy_adapter(adapter, partial / ADAPTER, _adapted_model(lineage, source))
        lineage.write(partial)
        write_checksums(partial)


def _write_small_files(
    encoder: SentenceTransformer, folder: Path, lineage: Lineage, source: Path | None
) -> dict[str, str]:
    """Write the files of a saved encoder that stock sentence-transformers writes otherwise.

    Returns:
        The versions that a client needs, by package.
    """
    if lineage.method is None:
        assert source is not None
        return keep_layout(source, folder)
    if source is None:
        _write_tokenizer(encoder, folder)
    else:
        copy_tokenizer(source, folder)
    return write_layout(folder)


def _adapted_model(lineage: Lineage, source: Path | None) -> str:
    """Return the name of the model that the adapter of the last stage belongs to."""
    if len(lineage.stages) > 1 and source is not None:
        return source.name
    known = lineage.bases[-1].name if lineage.bases else lineage.backbone and lineage.backbone.name
    return str(known)


def require_independent(encoder: SentenceTransformer, name: str) -> None:
    """Check that the embedding of a text does not depend on the other texts of its batch.

    Args:
        encoder: in float32.
        name: of the encoder, for the message.

    Raises:
        UserError: if it does.
    """
    together = encoder.encode(
        list(TEXTS), prompt="", convert_to_tensor=True, show_progress_bar=False
    )
    difference = Reference.of(together.float().cpu()).difference(encoder)
    if not difference <= SAME:
        raise UserError(
            f"encoder {name!r} is refused: the embedding of a text in a batch differs from that of "
            f"the text alone by a cosine distance of {difference:.1e}; choose another base"
        )


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy `tokenizer.json` from one encoder folder to another that was saved by transformers.

    transformers makes special tokens added tokens again, which other programs find in texts.
    """
    shutil.copyfile(source / TOKENIZER, target / TOKENIZER)


def _write_tokenizer(encoder: SentenceTransformer, folder: Path) -> None:
    """Write `tokenizer.json` without the added tokens that transformers makes of special tokens."""
    rows = len(token_table(encoder_body(encoder)).weight)
    plain = without_special_tokens(encoder.tokenizer.backend_tokenizer, rows, cut=False)
    plain.save(str(folder / TOKENIZER))


def copy_adapter(source: Path, target: Path, base: str) -> None:
    """Copy the two files of an adapter folder into a new folder.

    PEFT writes its target modules in another order each time; here they are sorted.

    Args:
        source: adapter folder.
        target: folder to make.
        base: name of the model that the adapter belongs to. PEFT writes the path that the model
            was loaded from.
    """
    target.mkdir(parents=True)
    config = json.loads((source / ADAPTER_CONFIG).read_bytes())
    config["base_model_name_or_path"] = base
    config["target_modules"] = sorted(config.get("target_modules", []))
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (target / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
    shutil.copyfile(source / SAFETENSORS_WEIGHTS_NAME, target / SAFETENSORS_WEIGHTS_NAME)


def build(
    lineage: Lineage, adapters: list[Path], dtype: torch.dtype = torch.float32
) -> SentenceTransformer:
    """Build an encoder from its backbone and the adapters of its stages.

    Args:
        lineage: of an encoder of ours; names the backbone and the stages.
        adapters: folders of the first stages, in order.
        dtype: of the weights.

    Raises:
        UserError: if the backbone cannot be loaded or an adapter does not fit.
    """
    last = lineage.stages[len(adapters) - 1]
    assert lineage.method is not None
    backbone, memory, prompt_format = lineage.method
    model, tokenizer = load_backbone(
        backbone.name,
        dtype=stored(dtype),
        bidirectional=not last.causal,
        trust_remote_code=backbone.trust_remote_code,
        revision=backbone.revision,
    )
    tokenizer = add_memory_tokens(
        model, tokenizer, memory, lineage.seed, prompt_format, backbone.add_bos
    )
    encoder = assemble(
        model,
        tokenizer,
        memory.tokens,
        causal=bool(last.causal),
        prompts=lineage.prompts,
        max_length=int(lineage.max_length or 0),
        prompt_format=prompt_format,
    )
    for adapter in adapters:
        merge(encoder, adapter, dtype if adapter == adapters[-1] else torch.float32)
    return encoder
