"""What an index says of itself: how its vectors are stored, and whose they are."""

from typing import Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ValidationError

from llm2comp.errors import UserError, counted
from llm2comp.inference.vector_format import Embeddings, require_vectors, smallest_cosine
from llm2comp.utils.choices import IndexPrecision, VectorCount

KEY = b"llm2comp"
"""Under which the table of an index has it, in its schema."""
SAME = 0.99
"""Smallest cosine of embeddings that count as those of one encoder. bfloat16 keeps 0.999."""


class About(BaseModel):
    """What an index says of itself.

    Attributes:
        format: of the folder; 2 if a text has several vectors, which older versions cannot read.
        model: name or folder of the encoder; None if it was given as a loaded model.
        dim: number of leading dimensions that are kept.
        precision: in which vectors are compared with a query first, or the k vectors are stored.
        vectors: number of vectors by which a text is found: 1, or the k of its memory tokens.
        document: embeddings of `TEXTS` with the prompt for documents, `(texts, dimension)`.
        query: the same with the prompt for queries.
        memory_tokens: that the encoder appended and pooled; None if it pools otherwise, or an
            older version made the index.
    """

    format: Literal[1, 2] = 1
    model: str | None
    dim: int
    precision: IndexPrecision
    vectors: int = 1
    document: list[list[float]]
    query: list[list[float]]
    memory_tokens: int | None = None

    def require_options(
        self,
        dim: int | None,
        precision: IndexPrecision | None,
        vectors: VectorCount | None,
        folder: object,
    ) -> None:
        """Check that the options of a call, as far as they are given, are those of the index.

        Args:
            dim: wanted dimensions.
            precision: wanted precision.
            vectors: wanted vectors per text.
            folder: of the index, for the message.

        Raises:
            UserError: if they are others.
        """
        own = (self.dim, self.precision, "one" if self.vectors == 1 else "k")
        if (dim or own[0], precision or own[1], vectors or own[2]) != own:
            raise UserError(
                f"{folder} was made with dim {own[0]}, precision {own[1]} and vectors {own[2]}; "
                "leave these options out, or name another folder"
            )

    def require_same(
        self, document: Embeddings, query: Embeddings, folder: object, memory_tokens: int | None
    ) -> None:
        """Check that an encoder is the one whose vectors an index has.

        The first memory tokens alone may have nearly the same embeddings, so their number counts.

        Args:
            document: its embeddings of the fixed texts, as of those of the index.
            query: the same.
            folder: of the index, for the message.
            memory_tokens: that the encoder appends and pools; None if it pools otherwise.

        Raises:
            UserError: if it is another one, appends another number of memory tokens, or puts other
                prompts before texts.
        """
        if None not in (self.memory_tokens, memory_tokens) and self.memory_tokens != memory_tokens:
            raise UserError(
                f"{folder} holds vectors of {counted(self.memory_tokens or 0, 'memory token')}, "
                f"and this encoder appends {memory_tokens}; load it with "
                f"memory_tokens={self.memory_tokens}, or make another index"
            )
        for kind, own, other in (
            ("documents", self.document, document),
            ("queries", self.query, query),
        ):
            there = np.asarray(own, np.float32)
            if there.shape != other.shape or not smallest_cosine(there, other) >= SAME:
                made = self.model or "a loaded model"
                raise UserError(
                    f"{folder} was made with {made}, and this encoder embeds {kind} in another "
                    "way (another encoder, or another prompt); use that one, or make another index"
                )


def require_options(
    dim: int | None, precision: IndexPrecision | None, vectors: VectorCount | None
) -> None:
    """Check that a new index can have such vectors.

    Args:
        dim: wanted dimensions; None is all.
        precision: wanted precision; None is the default.
        vectors: wanted vectors per text; None is one.

    Raises:
        UserError: if it cannot.
    """
    vectors = vectors or "one"
    require_vectors(vectors, dim=dim)
    other = "float32" if vectors == "k" else "float16"
    known = [one for one in get_args(IndexPrecision) if one != other]
    if precision not in (None, *known):
        raise UserError(
            f"precision {precision!r} of an index with vectors {vectors!r} is not one of "
            f"{', '.join(known)}"
        )


def read_about(metadata: dict[bytes, Any] | None, folder: object) -> About:
    """Return what the schema of a table says.

    Raises:
        UserError: if it says nothing, or what another version wrote.
    """
    try:
        return About.model_validate_json((metadata or {})[KEY])
    except (KeyError, ValidationError) as error:
        raise UserError(
            f"{folder}: is not an index that this version of llm2comp can read; make it again"
        ) from error
