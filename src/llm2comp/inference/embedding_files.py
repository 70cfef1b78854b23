"""Files of embeddings, written one chunk after another."""

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llm2comp.errors import UserError

Embeddings = npt.NDArray[np.float32]
"""Shape `(texts, dimension)`."""


def require_writable(file: Path) -> None:
    """Check that a file for embeddings has a known ending.

    Args:
        file: need not exist.

    Raises:
        UserError: if the file does not end in `.npy` or `.parquet`.
    """
    if file.suffix not in WRITERS:
        raise UserError(f"--out {file}: embeddings are written to {' or '.join(WRITERS)} files")


class EmbeddingWriter(Protocol):
    """Writes a file of embeddings whose number of rows is known before.

    Args:
        file: to write.
        rows: number of texts.
        dimension: of an embedding.
    """

    def __init__(self, file: Path, rows: int, dimension: int) -> None: ...

    def write(self, texts: list[str], embeddings: Embeddings) -> None:
        """Write the next rows.

        Args:
            texts: of these rows.
            embeddings: `(len(texts), dimension)`.
        """

    def close(self) -> None:
        """Finish the file."""


class _NpyWriter:
    """Writes the header, then the rows, to a plain stream.

    A memory map would be simpler, but on a full disk it ends the process by a signal.
    """

    def __init__(self, file: Path, rows: int, dimension: int) -> None:
        self.stream = file.open("wb")
        header = {"shape": (rows, dimension), "fortran_order": False, "descr": "<f4"}
        np.lib.format.write_array_header_1_0(self.stream, header)

    def write(self, texts: list[str], embeddings: Embeddings) -> None:  # noqa: ARG002
        self.stream.write(np.ascontiguousarray(embeddings, "<f4").data)

    def close(self) -> None:
        self.stream.close()


class _ParquetWriter:
    """Writes one row group per chunk, with the columns `text` and `embedding`."""

    def __init__(self, file: Path, rows: int, dimension: int) -> None:  # noqa: ARG002
        self.embedding = pa.list_(pa.float32(), dimension)
        self.schema = pa.schema([("text", pa.string()), ("embedding", self.embedding)])
        self.writer = pq.ParquetWriter(file, self.schema)

    def write(self, texts: list[str], embeddings: Embeddings) -> None:
        flat = pa.array(embeddings.reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, type=self.embedding)
        self.writer.write_table(pa.table([pa.array(texts), column], schema=self.schema))

    def close(self) -> None:
        self.writer.close()


WRITERS: dict[str, type[EmbeddingWriter]] = {".npy": _NpyWriter, ".parquet": _ParquetWriter}
"""The writer for each ending of a file name."""
