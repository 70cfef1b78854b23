"""An encoder whose embeddings are scored as they are stored: with fewer dimensions and bits."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from mteb.types import PromptType

from llm2comp.inference.vector_format import Embeddings, VectorFormat, truncate

TOP_K = 10
"""Number of texts that a search is for, because retrieval is scored on the first ten."""


@dataclass
class StoredAs:
    """How the embeddings of a model are stored before they are scored.

    Attributes:
        vectors: the format.
        fingerprint: of the model, see `llm2comp.evaluation.store.fingerprint`; None if it is not
            known yet.
        whole: whole embeddings of the texts of one task, which other formats share.
    """

    vectors: VectorFormat
    fingerprint: str | None = None
    whole: dict[str, Embeddings] = field(default_factory=dict)


class StoredEncoder(SentenceTransformerEncoderWrapper):
    """An mteb encoder that stores the embeddings of another one, and scores what is restored.

    Queries of a search stay floats. In a search of binary vectors, those with most common bits are
    candidates, and their order comes from the query's floats, as in `llm2comp.search`.

    Args:
        encoder: gives whole embeddings.
        stored_as: how they are stored.
        search: whether documents are searched for queries.
    """

    def __init__(
        self, encoder: SentenceTransformerEncoderWrapper, stored_as: StoredAs, *, search: bool
    ) -> None:
        super().__init__(encoder.model)
        self.encoder = encoder
        self.stored_as = stored_as
        self.search = search

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **kwargs: Any) -> Any:
        """Return the embeddings of the texts in mteb's batches.

        Returns:
            `(texts, dim)`; for the documents of a search `(texts, columns)`, as they are stored.
        """
        vectors = self.stored_as.vectors
        whole = self._whole(inputs, prompt_type, kwargs)
        if self.search and prompt_type is PromptType.query:
            return truncate(whole, vectors.dim)
        stored = vectors.store(whole)
        return stored if self.search else vectors.restore(stored)

    def _whole(
        self, inputs: Any, prompt_type: PromptType | None, options: dict[str, Any]
    ) -> Embeddings:
        """Return whole embeddings `(texts, dimension)`; the same texts are encoded once."""
        digest = hashlib.sha256(str(prompt_type).encode())
        for batch in inputs:
            for text in batch["text"]:
                digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
        known = self.stored_as.whole
        if digest.hexdigest() not in known:
            embeddings = self.encoder.encode(inputs, prompt_type=prompt_type, **options)
            known[digest.hexdigest()] = np.asarray(embeddings, dtype=np.float32)
        return known[digest.hexdigest()]

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the similarities `(queries, documents)`; documents are as `encode` gives them."""
        vectors, documents = self.stored_as.vectors, np.asarray(embeddings2)
        if not self.search:
            return self.encoder.similarity(embeddings1, embeddings2)
        if vectors.precision != "binary":
            return self.encoder.similarity(embeddings1, vectors.restore(documents))
        return vectors.similarities(np.asarray(embeddings1), documents, TOP_K)
