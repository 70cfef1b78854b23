"""The one loader of encoders, with the one policy for their precision."""

import logging
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel

from llm2comp.errors import UserError, one_line
from llm2comp.inference import compiled
from llm2comp.inference.precision import load_checked
from llm2comp.inference.token_batching import TokenBatched
from llm2comp.model import released
from llm2comp.model.attention import configure_attention
from llm2comp.model.modules import merge_memory
from llm2comp.utils.choices import Precision

logger = logging.getLogger(__name__)


def load(
    name: str | Path, dtype: Precision = "auto", merge_threshold: float | None = None
) -> SentenceTransformer:
    """Load an encoder and say in one log line in which precision it computes.

    Args:
        name: encoder folder, released model, packaged peer (``minilm``), or hub id.
        dtype: ``float32``, ``bfloat16``, or ``auto``: bfloat16 where the processor has it and the
            embeddings stay the same, see :func:`.precision.load_checked`. A compiled encoder
            computes in the precision that it was compiled in.
        merge_threshold: merge memory tokens before pooling, see
            :func:`llm2comp.model.modules.merge_memory`; ``None`` merges nothing. Merging is part of
            the check of bfloat16, because rounding may move a memory token into another cluster.

    Returns:
        A sentence-transformers model whose ``encode`` batches texts by tokens.

    Raises:
        UserError: if there is no such encoder, it cannot be loaded, or it has no memory tokens
            to merge.
    """
    name = str(name)
    source = released.source_of(name)

    def build(wanted: torch.dtype) -> SentenceTransformer:
        model = load_in(name, wanted)
        return model if merge_threshold is None else merge_memory(model, merge_threshold)

    if compiled.backend_of(Path(source)):
        model = build(torch.float32)
        logger.info("%s: computes in the precision that it was compiled in", name)
        return model
    label = name if merge_threshold is None else f"{name}, merged at {merge_threshold:g}"
    return load_checked(label, dtype, build, source)


def load_in(name: str, dtype: torch.dtype = torch.float32) -> SentenceTransformer:
    """Load an encoder with weights of one dtype, without the check of :func:`load`.

    Args:
        name: as :func:`load` takes it.
        dtype: of the weights in memory; a compiled encoder has a precision of its own.

    Raises:
        UserError: if it cannot be loaded.
    """
    source = released.source_of(name)
    if compiled.backend_of(Path(source)):
        return compiled.load(Path(source))
    try:
        model = TokenBatched(source, model_kwargs={"dtype": dtype})
    except (OSError, ValueError) as error:
        known = ", ".join([*released.names(), *released.PEERS])
        raise UserError(
            f"model {name!r} cannot be loaded ({one_line(error)}); "
            f"give an encoder folder, a hub id, or one of {known}"
        ) from error
    body = getattr(model[0], "model", None)
    if isinstance(body, PreTrainedModel):
        configure_attention(body)
    return model
