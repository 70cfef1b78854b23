"""Embeddings of a list of texts."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer

from llm2comp.inference.embedding_files import Embeddings
from llm2comp.inference.worker_pool import Workers


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
    """
    encoders: dict[str | None, Callable[..., npt.ArrayLike]] = {
        None: model.encode,
        "query": model.encode_query,
        "document": model.encode_document,
    }
    embeddings = encoders[prompt_name](
        texts, batch_size=batch_size, show_progress_bar=False, pool=workers
    )
    return np.asarray(embeddings, dtype=np.float32)
