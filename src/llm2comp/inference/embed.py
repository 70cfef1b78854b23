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
    pool: Workers | None = None,
) -> Embeddings:
    """Return float32 ``(len(texts), dimension)``, with the model's query or document prompt."""
    encoders: dict[str | None, Callable[..., npt.ArrayLike]] = {
        None: model.encode,
        "query": model.encode_query,
        "document": model.encode_document,
    }
    vectors = encoders[prompt_name](
        texts, batch_size=batch_size, show_progress_bar=False, pool=pool
    )
    return np.asarray(vectors, dtype=np.float32)
