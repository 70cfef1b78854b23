"""Files of embeddings, written one chunk after another."""

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llm2comp.errors import UserError
from llm2comp.utils.files import require_file

Embeddings = npt.NDArray[np.float32]
"""Shape `(texts, dimension)`."""


COLUMNS = ("text", "embedding")
"""The columns of a .parquet file of embeddings."""


def require_writable(file: Path, texts: Path) -> None:
    """Check that a file for embeddings can be written and replaces nothing else, before the work.

    Args:
        file: need not exist. Embeddings that are in it may be replaced.
        texts: the file of texts, which must be another file.

    Raises:
        UserError: if the file does not end in `.npy` or `.parquet`, cannot be written, is that of
            the texts, links to another kind of file, or is a table of something else.
    """
    require_file(file, [texts])
    if file.suffix not in WRITERS:
        raise UserError(f"--out {file}: embeddings are written to {' or '.join(WRITERS)} files")
    target = file.resolve()
    if target.suffix != file.suffix:  # what is piped to standard input may be that file
        raise UserError(f"--out {file}: it is a link to {target.name}; name another file")
    if file.suffix == ".parquet" and file.exists() and _columns(file) != COLUMNS:
        raise UserError(f"--out {file}: it is a table of something else; name another file")


def _columns(table: Path) -> tuple[str, ...]:
    """Return the names of the columns of a .parquet file; none if it is broken."""
    try:
        return tuple(pq.read_schema(table).names)
    except pa.ArrowException:
        return ()


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
        self.schema = pa.schema(list(zip(COLUMNS, (pa.string(), self.embedding), strict=True)))
        self.writer = pq.ParquetWriter(file, self.schema)

    def write(self, texts: list[str], embeddings: Embeddings) -> None:
        flat = pa.array(embeddings.reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, type=self.embedding)
        self.writer.write_table(pa.table([pa.array(texts), column], schema=self.schema))

    def close(self) -> None:
        self.writer.close()


WRITERS: dict[str, type[EmbeddingWriter]] = {".npy": _NpyWriter, ".parquet": _ParquetWriter}
"""The writer for each ending of a file name."""
