"""How an embedding is stored: how many of its dimensions, in which precision.

The command line imports this before it knows that a model is needed, so torch is not imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from llm2comp.errors import UserError
from llm2comp.utils.choices import EmbeddingPrecision, VectorCount

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BITS: dict[EmbeddingPrecision, int] = {
    "float32": 32,
    "float16": 16,
    "int8": 8,
    "uint8": 8,
    "binary": 1,
}
"""Bits of a number in each precision."""
CALIBRATED = ("int8", "uint8")
"""The precisions that divide the range of each dimension into 256 steps."""
CANDIDATES = 4
"""A search in binary vectors compares this many times the wanted texts with the query's floats."""

Embeddings = npt.NDArray[np.float32]
"""Shape `(texts, dimension)`."""
Stored = npt.NDArray[Any]
"""Shape `(texts, columns)`, in the precision of a format."""


@dataclass(frozen=True)
class VectorFormat:
    """A way to store embeddings.

    Attributes:
        dim: number of leading dimensions that are kept. A shorter embedding has unit length.
        precision: of the stored numbers. `binary` packs the signs of 8 dimensions into an int8, as
            sentence-transformers does.
        ranges: the smallest and the largest value of each dimension, `(2, dim)`; for int8 and uint8
            alone. A larger value becomes the largest one.
    """

    dim: int
    precision: EmbeddingPrecision = "float32"
    ranges: Embeddings | None = None

    def __str__(self) -> str:
        return f"{self.dim} dimensions in {self.precision}"

    @property
    def columns(self) -> int:
        """The number of stored numbers per embedding."""
        return -(-self.dim // 8) if self.precision == "binary" else self.dim

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of a stored number."""
        return np.dtype("int8" if self.precision == "binary" else self.precision).newbyteorder("<")

    @property
    def bytes(self) -> int:
        """The size of a stored embedding."""
        return self.columns * self.dtype.itemsize

    def store(self, embeddings: Embeddings) -> Stored:
        """Return whole or truncated embeddings `(texts, dimension)` as they are stored."""
        kept = truncate(embeddings, self.dim)
        if self.precision == "float16":
            return kept.astype(self.dtype)
        from sentence_transformers.util import quantize_embeddings

        return np.asarray(quantize_embeddings(kept, self.precision, ranges=self.ranges))

    def restore(self, stored: Stored) -> Embeddings:
        """Return the embeddings `(texts, dim)` that stored ones stand for.

        A step of int8 becomes the value in its middle. A bit becomes a number of the same size for
        all, so that the embedding has unit length.
        """
        if self.precision == "binary":
            bits = np.unpackbits(_unsigned(stored), axis=1, count=self.dim)
            return np.asarray((2 * bits.astype(np.float32) - 1) / self.dim**0.5, dtype=np.float32)
        values = stored.astype(np.float32)
        if self.ranges is None:
            return values
        smallest, largest = self.ranges
        step = values + (128 if self.precision == "int8" else 0)
        return np.asarray(smallest + (step + 0.5) * (largest - smallest) / 255, dtype=np.float32)

    def similarities(self, queries: Embeddings, stored: Stored, top_k: int) -> Embeddings:
        """Return how near stored embeddings are to queries.

        Queries are floats, which costs no space. In binary vectors, the texts that have most bits
        in common with the query are candidates, and only they are compared with its floats.

        Args:
            queries: `(queries, dim)`.
            stored: `(texts, columns)`.
            top_k: number of texts that are wanted for each query.

        Returns:
            Cosines `(queries, texts)`. In a search of binary vectors, the other texts have a number
            below -1, which is larger for more common bits.
        """
        if self.precision != "binary":
            return _cosines(queries, self.restore(stored))
        signs = _unsigned(self.store(queries))
        bits = _unsigned(stored)
        count = min(CANDIDATES * top_k, len(bits))
        scores = np.empty((len(queries), len(bits)), dtype=np.float32)
        for row, query in enumerate(queries):
            different = np.bitwise_count(bits ^ signs[row]).sum(axis=1, dtype=np.float32)
            scores[row] = -1 - 2 * different / self.dim
            nearest = np.argpartition(different, count - 1)[:count]
            scores[row, nearest] = _cosines(query[None], self.restore(stored[nearest]))[0]
        return scores


def truncate(embeddings: Embeddings, dim: int) -> Embeddings:
    """Return the first `dim` numbers of embeddings, scaled to unit length.

    It is `encode(..., truncate_dim=dim, normalize_embeddings=True)` of sentence-transformers.
    Embeddings that have no more numbers are returned as they are.
    """
    if embeddings.shape[1] == dim:
        return embeddings
    return to_unit_length(embeddings[:, :dim])


def to_unit_length(embeddings: Embeddings) -> Embeddings:
    """Return embeddings `(..., dimension)` scaled to unit length; zeros stay zeros."""
    lengths = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return np.asarray(embeddings / np.maximum(lengths, 1e-12), dtype=np.float32)


def smallest_cosine(first: Embeddings, second: Embeddings) -> float:
    """Return how far two encoders agree: the smallest cosine between the embeddings of a text.

    Args:
        first: `(texts, dimension)`.
        second: embeddings of the same texts.

    Returns:
        At most 1 but for rounding; NaN if an embedding is not finite or zero.
    """
    with np.errstate(invalid="ignore"):
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        return float(((first * second).sum(axis=1) / lengths).min())


def require_dim(model: SentenceTransformer, dim: int | None) -> int:
    """Return the number of dimensions to keep: `dim`, or all if it is None.

    Raises:
        UserError: if the embeddings of the model have fewer.
    """
    whole = model.get_embedding_dimension() or model.encode("a text").shape[-1]
    if dim is not None and not 1 <= dim <= whole:
        raise UserError(f"dim is {dim}; the embeddings have {whole} dimensions, so give 1 to that")
    return dim or whole


def require_precision(precision: str) -> None:
    """Check the name of a precision.

    Raises:
        UserError: if it is another one.
    """
    if precision not in BITS:
        known = ", ".join(get_args(EmbeddingPrecision))
        raise UserError(f"precision {precision!r} is not one of {known}")


def require_vectors(vectors: VectorCount, **options: object) -> None:
    """Check the number of vectors per text.

    Args:
        vectors: per text.
        options: by name, those that are for one vector per text; None if one is not given.

    Raises:
        UserError: if it is another one, or an option is given for k vectors.
    """
    if vectors not in get_args(VectorCount):
        raise UserError(f"vectors {vectors!r} is neither 'one' nor 'k'")
    given = [name for name, value in options.items() if value is not None]
    if vectors == "k" and given:
        raise UserError(f"{' and '.join(given)} is for one vector per text; leave it out")


def _unsigned(packed: Stored) -> npt.NDArray[np.uint8]:
    """Undo the offset of -128 that sentence-transformers gives packed bits."""
    return packed.view(np.uint8) ^ np.uint8(0x80)


def _cosines(queries: Embeddings, texts: Embeddings) -> Embeddings:
    """Return the cosines `(queries, texts)`; 0 for an embedding of zeros."""
    return np.asarray(to_unit_length(queries) @ to_unit_length(texts).T, dtype=np.float32)
