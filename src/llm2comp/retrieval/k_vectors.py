"""The k vectors of each text of an index: how they are stored, and how they rank texts."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llm2comp.inference.vector_format import Embeddings, to_unit_length
from llm2comp.retrieval.about import About
from llm2comp.retrieval.rows import VECTORS

TYPES: dict[str, pa.DataType] = {"float16": pa.float16(), "int8": pa.int8(), "binary": pa.uint8()}
"""What a stored number is. A number of `binary` has the signs of 8 dimensions."""
SCORED = 1_024
"""Texts whose vectors are floats at once: 19 MB with 8 vectors of 576 dimensions."""


def field_of(about: About) -> pa.Field:
    """Return the column of the k vectors."""
    numbers = about.vectors * about.dim
    columns = -(-numbers // 8) if about.precision == "binary" else numbers
    return pa.field(VECTORS, pa.list_(TYPES[about.precision], columns))


def pack(rows: Embeddings, about: About) -> pa.Array:
    """Return the k vectors of texts `(texts, k * dim)` as they are stored.

    Their lengths are not stored, because MaxSim compares directions. So int8 divides the range of
    each vector by its own largest number.
    """
    vectors = rows.reshape(len(rows), about.vectors, about.dim)
    stored: npt.NDArray[Any]
    if about.precision == "binary":
        stored = np.packbits(rows > 0, axis=1)
    elif about.precision == "int8":
        largest = np.abs(vectors).max(axis=2, keepdims=True)
        stored = np.rint(127 * vectors / np.maximum(largest, 1e-12)).astype(np.int8)
    else:
        stored = vectors.astype(np.float16)
    field = field_of(about)
    return pa.FixedSizeListArray.from_arrays(pa.array(stored.reshape(-1)), field.type.list_size)


def unpack(column: pa.ChunkedArray, about: About) -> Embeddings:
    """Return the directions `(texts, k * dim)` of vectors that are stored."""
    stored = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    stored = stored.reshape(len(column), -1)
    if about.precision == "binary":
        stored = (
            2 * np.unpackbits(stored, axis=1, count=about.vectors * about.dim).astype(np.int8) - 1
        )
    vectors = stored.astype(np.float32).reshape(-1, about.dim)
    return to_unit_length(vectors).reshape(len(column), -1)


def scores(query: Embeddings, column: pa.ChunkedArray, about: About) -> Embeddings:
    """Return the MaxSim `(texts,)` of a query `(k * dim,)` with texts.

    It is `llm2comp.model.multi_vector.max_sim.MaxSim` without torch, which takes seconds to import.
    """
    wanted = query.reshape(about.vectors, about.dim).T
    found = [np.empty(0, np.float32)]
    for first in range(0, len(column), SCORED):
        vectors = unpack(column.slice(first, SCORED), about)
        cosines = vectors.reshape(-1, about.vectors, about.dim) @ wanted
        found.append(cosines.max(axis=1).mean(axis=1))
    return np.concatenate(found)
