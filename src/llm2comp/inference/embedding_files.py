"""Files of vectors, written a chunk at a time."""

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llm2comp.errors import UserError

Embeddings = npt.NDArray[np.float32]


def require_writable(file: Path) -> None:
    """Check that a file of vectors is of a kind that can be written.

    Raises:
        UserError: if not.
    """
    if file.suffix not in WRITERS:
        raise UserError(f"--out {file}: vectors are written to {' or '.join(WRITERS)} files")


class EmbeddingWriter(Protocol):
    """Writes a file of so many rows of one dimension, and nothing but whole rows."""

    def __init__(self, file: Path, rows: int, dimension: int) -> None: ...

    def write(self, texts: list[str], vectors: Embeddings) -> None:
        """Write the next rows."""

    def close(self) -> None:
        """End the file."""


class _NpyWriter:
    """Writes the header, then rows behind one another.

    Not through a memory map: on a full disk that ends the process by a signal.
    """

    def __init__(self, file: Path, rows: int, dimension: int) -> None:
        self.stream = file.open("wb")
        header = {"shape": (rows, dimension), "fortran_order": False, "descr": "<f4"}
        np.lib.format.write_array_header_1_0(self.stream, header)

    def write(self, texts: list[str], vectors: Embeddings) -> None:  # noqa: ARG002
        self.stream.write(np.ascontiguousarray(vectors, "<f4").data)

    def close(self) -> None:
        self.stream.close()


class _ParquetWriter:
    """Writes a row group a chunk."""

    def __init__(self, file: Path, rows: int, dimension: int) -> None:  # noqa: ARG002
        self.vector = pa.list_(pa.float32(), dimension)
        self.schema = pa.schema([("text", pa.string()), ("embedding", self.vector)])
        self.writer = pq.ParquetWriter(file, self.schema)

    def write(self, texts: list[str], vectors: Embeddings) -> None:
        flat = pa.array(vectors.reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, type=self.vector)
        self.writer.write_table(pa.table([pa.array(texts), column], schema=self.schema))

    def close(self) -> None:
        self.writer.close()


WRITERS: dict[str, type[EmbeddingWriter]] = {".npy": _NpyWriter, ".parquet": _ParquetWriter}
