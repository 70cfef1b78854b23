"""Embeddings of a list of texts."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer

from llm2comp.data.text_files import replace_surrogates
from llm2comp.errors import UserError
from llm2comp.inference.vector_format import Embeddings
from llm2comp.inference.worker_pool import Workers

DOCUMENT_PROMPTS = ("document", "passage", "corpus")
"""The prompts of which `encode_document` takes the first that there is."""


def embed(
    model: SentenceTransformer,
    texts: list[str],
    batch_size: int,
    prompt_name: str | None = None,
    workers: Workers | None = None,
) -> Embeddings:
    """Return the embeddings of texts, in order.

    Args:
        model: any sentence-transformers model.
        texts: of any length.
        batch_size: texts per batch, as the model counts them.
        prompt_name: `query` or `document` for the model's prompt of that name; None for no prompt.
        workers: processes that compute the batches in place of this one; only for a
            `llm2comp.inference.token_batching.TokenBatched`.

    Returns:
        `(len(texts), dimension)`, float32.

    Raises:
        UserError: if there is no such prompt, or `batch_size` is below 1.
    """
    encoders: dict[str | None, Callable[..., npt.ArrayLike]] = {
        None: model.encode,
        "query": model.encode_query,
        "document": model.encode_document,
    }
    if prompt_name not in encoders:
        raise UserError(f"prompt {prompt_name!r} is neither 'query' nor 'document'")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    if not texts:
        return np.empty((0, model.get_embedding_dimension() or 0), dtype=np.float32)
    embeddings = encoders[prompt_name](
        texts, batch_size=batch_size, show_progress_bar=False, pool=workers
    )
    return np.asarray(embeddings, dtype=np.float32)


def prompt_of(model: SentenceTransformer, prompt_name: str | None) -> str | None:
    """Return what `embed` puts before each text; None or empty for nothing."""
    names = {"query": ("query",), "document": DOCUMENT_PROMPTS}.get(prompt_name or "", ())
    for name in (*names, model.default_prompt_name):
        if name in model.prompts:
            return model.prompts[name]
    return None


def as_texts(texts: Sequence[str]) -> list[str]:
    """Return texts as a list, with lone surrogates replaced by U+FFFD.

    Raises:
        UserError: if `texts` is a single string, or something in it is not a string.
    """
    if isinstance(texts, str):
        raise UserError("texts is one string; give a list of texts")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"text {place} is not a string but {type(text).__name__}")
    return [replace_surrogates(text) for text in texts]
