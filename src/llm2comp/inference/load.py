"""Load an encoder by name, in the precision that suits the processor."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.sentence_transformer.modules import WordWeights
from transformers import PreTrainedModel

from llm2comp.errors import UserError, counted, one_line
from llm2comp.inference import compiled
from llm2comp.inference.precision import HalfPrecisionError, load_checked
from llm2comp.inference.token_batching import TokenBatched
from llm2comp.model import released
from llm2comp.model.attention import configure_attention, require_attention
from llm2comp.model.folder.reference import SAME_IN_HALF
from llm2comp.model.lineage import LINEAGE, Lineage
from llm2comp.model.matryoshka.first_tokens import keep_memory_tokens
from llm2comp.model.modules import merge_memory
from llm2comp.model.multi_vector.late_interaction import require_one_vector
from llm2comp.utils.choices import AttnImplementation, Precision
from llm2comp.utils.finite import require_finite
from llm2comp.utils.hardware import compute_dtype
from llm2comp.utils.linear import use_onednn

logger = logging.getLogger(__name__)


SETTINGS = ("modules.json", "config_sentence_transformers.json")
"""Files without which sentence-transformers loads another model, or one without its prompts."""
TRUST = "LLM2COMP_TRUST_REMOTE_CODE"
"""Environment variable with which all commands and functions run code that comes with models."""


def trusted() -> bool:
    """Return whether the environment allows code that comes with models."""
    return os.environ.get(TRUST) == "1"


def load(
    name: str | Path,
    dtype: Precision = "auto",
    merge_threshold: float | None = None,
    *,
    memory_tokens: int | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> SentenceTransformer:
    """Load an encoder, and log its precision in one line.

    Args:
        name: encoder folder, released model, packaged peer (`minilm`), or hub id.
        dtype: `float32`, `bfloat16`, or `auto`: bfloat16 where the processor has it natively and
            the embeddings stay the same, see `llm2comp.inference.precision.load_checked`. A
            compiled encoder keeps the precision that it was compiled in.
        merge_threshold: merge memory tokens before pooling, see
            `llm2comp.model.modules.merge_memory`; None merges nothing. The check of bfloat16
            includes merging, because rounding may move a memory token into another cluster.
        memory_tokens: append only so many of the memory tokens, the first ones; None appends all.
        trust_remote_code: run the Python code that comes with the encoder, if it has any.
        attn_implementation: as `llm2comp.model.attention.configure_attention` takes it. With
            `flash_attention_2`, `auto` is bfloat16, because there is no float32 to compare with.

    Returns:
        A sentence-transformers model whose `encode` batches texts by tokens.

    Raises:
        UserError: if there is no such encoder, it cannot be loaded, it has no memory tokens to
            merge or fewer than are asked for, or its embeddings are not those that were saved with
            it; if this machine or the encoder cannot attend as asked.
    """
    name = str(name)
    if dtype not in get_args(Precision):
        raise UserError(f"dtype {dtype!r} is not one of {', '.join(get_args(Precision))}")
    if attn_implementation not in (None, *get_args(AttnImplementation)):
        known = ", ".join(get_args(AttnImplementation))
        raise UserError(f"attn_implementation {attn_implementation!r} is not one of {known}")
    if attn_implementation == "flash_attention_2" and dtype == "auto":
        dtype = "bfloat16"
    require_attention(attn_implementation, compute_dtype(dtype), training=False)
    source = released.resolve_encoder(name)
    require_one_vector(Path(source), name)
    has_lineage = (Path(source) / LINEAGE).is_file()
    lineage = Lineage.read(Path(source)) if has_lineage else None
    for needed in SETTINGS if has_lineage else ():
        if not (Path(source) / needed).is_file():
            raise UserError(f"model {name!r} is incomplete: it has no {needed}")

    def build(wanted: torch.dtype) -> SentenceTransformer:
        with one_line_errors(name):
            model = load_in(
                name,
                wanted,
                trust_remote_code=trust_remote_code,
                attn_implementation=attn_implementation,
                source=source,
            )
            _check_embeddings(model, lineage, name, wanted)
        if memory_tokens is not None:
            keep_memory_tokens(model, memory_tokens, name)
        return model if merge_threshold is None else merge_memory(model, merge_threshold)

    if compiled.backend_of(Path(source)):
        model = build(torch.float32)
        logger.info("%s: keeps the precision that it was compiled in", name)
    else:
        label = name if merge_threshold is None else f"{name}, merged at {merge_threshold:g}"
        label += f", {counted(memory_tokens, 'memory token')}" if memory_tokens is not None else ""
        label += f", {attn_implementation}" if attn_implementation else ""
        model = load_checked(label, dtype, build, source)
    if lineage and memory_tokens not in (None, lineage.num_memory_tokens, *lineage.token_counts):
        trained = ", ".join(map(str, lineage.token_counts or [lineage.num_memory_tokens]))
        logger.warning(
            "%s: it was trained with %s memory tokens, and not with the first %d alone; train it "
            "with matryoshka_tokens",
            name,
            trained,
            memory_tokens,
        )
    mismatch = lineage and lineage.prompt_mismatch(model.prompts)
    if mismatch:
        logger.warning(
            "%s: %s; give the prompt yourself: encode(texts, prompt=...)", name, mismatch
        )
    return model


def load_in(
    name: str,
    dtype: torch.dtype = torch.float32,
    *,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    source: str | None = None,
) -> SentenceTransformer:
    """Load an encoder with weights of one dtype, without the check that `load` makes.

    Args:
        name: as `load` takes it.
        dtype: of the weights in memory; a compiled encoder keeps its own precision.
        trust_remote_code: as `load` takes it.
        attn_implementation: as `load` takes it.
        source: where `released.resolve_encoder` found it, if it was asked.

    Raises:
        UserError: if it is not found, a weight is no number, or it cannot attend as asked.
    """
    source = source or released.resolve_encoder(name)
    no_choice = UserError(
        f"model {name!r} has no attention that can be chosen; leave attn_implementation out"
    )
    if compiled.backend_of(Path(source)):
        if attn_implementation is not None:
            raise no_choice
        return compiled.load(Path(source))
    model = TokenBatched(
        source,
        model_kwargs={"dtype": dtype},
        trust_remote_code=trust_remote_code or trusted(),
    )
    require_finite(
        model,
        f"model {name!r}",
        "a training that diverges leaves such a model; train it again or take another",
    )
    for module in model.children():
        if isinstance(module, Transformer):
            module.unpad_inputs = False  # because `WordWeights` needs a mask
        if isinstance(module, WordWeights):
            module.requires_grad_(False)  # because saving does not keep what it would learn
    body = getattr(model[0], "model", None)
    if isinstance(body, PreTrainedModel):
        configure_attention(body, attn_implementation)
        use_onednn(body)
    elif attn_implementation is not None:
        raise no_choice
    return model


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Turn every error of the libraries into one line.

    A folder that was damaged or edited gives errors of all types, far from the file at fault.

    Raises:
        UserError: for any error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model {name!r} comes with Python code of its own; read the code, and if you "
                f"trust it, set {TRUST}=1 or call llm2comp.load(..., trust_remote_code=True)"
            ) from error
        said = one_line(error)
        if not isinstance(error, OSError | ValueError):  # others say little without their type
            said = f"{type(error).__name__}: {said}"
        known = ", ".join([*released.names(), *released.PEERS])
        raise UserError(
            f"model {name!r} cannot be loaded ({said}); "
            f"give an encoder folder, a hub id, or one of {known}"
        ) from error


def _check_embeddings(
    model: SentenceTransformer, lineage: Lineage | None, name: str, dtype: torch.dtype
) -> None:
    """Check that a model computes embeddings, and that they are those that were saved with it.

    Raises:
        UserError: if it computes others.
    """
    if lineage is None or lineage.reference is None:  # of others, or of an older version
        model.encode("a text", show_progress_bar=False)  # only this uses all files
        return
    exact = dtype == torch.float32
    allowed = lineage.allowed_difference if exact else SAME_IN_HALF
    difference = lineage.reference.difference(model)
    if difference <= allowed:
        return
    message = (
        f"{name}: its embeddings differ from those saved with it by a cosine distance of "
        f"{difference:.1e} ({allowed:g} allowed): its files have changed, or this version of "
        f"transformers computes another model than {lineage.versions['transformers']}, with "
        "which it was saved"
    )
    if exact:
        raise UserError(message)
    raise HalfPrecisionError(f"{message}, or it needs --dtype float32", 1 - difference)


def model_names(models: str | Path | Sequence[str | Path]) -> list[str]:
    """Return the names of models as a list of strings; one name alone is a list of one."""
    if isinstance(models, str | Path):
        return [str(models)]
    return [str(model) for model in models]
