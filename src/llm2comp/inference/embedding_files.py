"""Files of embeddings, written one chunk after another.

A `.parquet` and a `.npz` file say in JSON how their vectors are stored: `dim`, `precision`, the
`prompt` before the texts, the number of `memory_tokens`, and for int8 and uint8 the `ranges`. In
the first, it is in the metadata of the schema, under `llm2comp`; in the second, it is the array
`format`.
"""

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm2comp.errors import UserError
from llm2comp.inference.vector_format import Stored, VectorFormat
from llm2comp.utils.choices import EmbeddingPrecision
from llm2comp.utils.files import require_file

METADATA = b"llm2comp"
"""Key of a .parquet file's metadata under which it says how its vectors are stored."""
TEXT, VECTORS = COLUMNS = ("text", "embedding")
"""The columns of a .parquet file of embeddings."""
ARRAYS = ("format.npy", "embeddings.npy")
"""The files in an .npz file of embeddings."""


@dataclass(frozen=True)
class Content:
    """What the vectors of a file are.

    Attributes:
        vectors: how they are stored.
        prompt: name of the prompt that stood before the texts; None if there was none.
        memory_tokens: that the encoder appended and pooled; None if it pools otherwise, or an older
            version wrote the file.
    """

    vectors: VectorFormat
    prompt: str | None = None
    memory_tokens: int | None = None

    def to_json(self) -> str:
        """Return what a file says of itself."""
        vectors = self.vectors
        said: dict[str, Any] = {"dim": vectors.dim, "precision": vectors.precision}
        if vectors.ranges is not None:
            said["ranges"] = vectors.ranges.astype(float).tolist()
        if self.memory_tokens is not None:
            said["memory_tokens"] = self.memory_tokens
        return json.dumps(said | {"prompt": self.prompt})

    @classmethod
    def from_json(cls, said: str | bytes) -> Self:
        """Return what a file says of itself."""
        raw = json.loads(said)
        ranges = np.asarray(raw["ranges"], np.float32) if "ranges" in raw else None
        vectors = VectorFormat(raw["dim"], raw["precision"], ranges)
        return cls(vectors, raw["prompt"], raw.get("memory_tokens"))


def require_writable(file: Path, texts: Path, precision: EmbeddingPrecision = "float32") -> None:
    """Check that a file for embeddings can be written and replaces nothing else, before the work.

    Args:
        file: need not exist. Embeddings that are in it may be replaced.
        texts: the file of texts, which must be another file.
        precision: of the embeddings.

    Raises:
        UserError: if the file has another ending than those of `WRITERS` or one that cannot say
            how such embeddings are read, cannot be written, is that of the texts, links to another
            kind of file, or holds something else than embeddings.
    """
    require_file(file, [texts])
    if file.suffix not in WRITERS:
        known = f"{', '.join(list(WRITERS)[:-1])} or {list(WRITERS)[-1]}"
        raise UserError(f"--out {file}: embeddings are written to {known} files")
    if file.suffix == ".npy" and precision not in ("float32", "float16"):
        raise UserError(
            f"--out {file}: a .npy file cannot say how vectors in {precision} are read; name a "
            ".npz or .parquet file"
        )
    target = file.resolve()
    if target.suffix != file.suffix:  # what is piped to standard input may be that file
        raise UserError(f"--out {file}: it is a link to {target.name}; name another file")
    if file.suffix == ".parquet" and file.exists() and _columns(file) != COLUMNS:
        raise UserError(f"--out {file}: it is a table of something else; name another file")
    if file.suffix == ".npz" and file.exists() and _members(file) != ARRAYS:
        raise UserError(f"--out {file}: it has arrays of something else; name another file")


def _columns(table: Path) -> tuple[str, ...]:
    """Return the names of the columns of a .parquet file; none if it is broken."""
    try:
        return tuple(pq.read_schema(table).names)
    except pa.ArrowException:
        return ()


def content_of(file: Path) -> Content | None:
    """Return what the vectors of a file are; None if it is no .parquet file that says so.

    Raises:
        UserError: if it says so, but its vectors are not there or are others.
    """
    if file.suffix != ".parquet" or not file.is_file():
        return None
    try:
        schema = pq.read_schema(file)
    except pa.ArrowException:
        return None
    said = (schema.metadata or {}).get(METADATA)
    if said is None:
        return None
    try:
        content = Content.from_json(said)
        if schema.field("embedding").type.list_size == content.vectors.columns:
            return content
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(
        f"{file}: its vectors are not those that llm2comp wrote; encode its texts again"
    )


def has_vectors(file: Path, dim: int | None, precision: EmbeddingPrecision | None) -> bool:
    """Tell whether a file has vectors, and check that they are stored as somebody wants.

    Args:
        file: a file of texts, or of vectors and texts.
        dim: wanted number of dimensions; None for any.
        precision: wanted precision; None for any.

    Raises:
        UserError: if the vectors are stored in another way.
    """
    content = content_of(file)
    if content is None:
        return False
    vectors = content.vectors
    if (dim or vectors.dim, precision or vectors.precision) != (vectors.dim, vectors.precision):
        raise UserError(
            f"{file} holds vectors of {vectors}; leave out dim and precision, or encode its texts "
            "again"
        )
    return True


def read_vectors(file: Path, content: Content) -> Iterator[tuple[list[str], Stored]]:
    """Yield the texts and the stored vectors `(texts, columns)` of a .parquet file, in chunks."""
    with pq.ParquetFile(file) as table:
        for batch in table.iter_batches():
            yield batch["text"].to_pylist(), _vectors(batch["embedding"], content)


def sample_vectors(file: Path, content: Content, count: int) -> tuple[list[str], Stored]:
    """Return about `count` texts and stored vectors, from all parts of a .parquet file."""
    with pq.ParquetFile(file) as table:
        groups = sorted(set(np.linspace(0, table.num_row_groups - 1, count, dtype=int).tolist()))
        parts = []
        for group in groups:
            rows = table.read_row_group(group)
            parts.append(
                rows.take(np.linspace(0, len(rows) - 1, -(-count // len(groups)), dtype=int))
            )
    batch = pa.concat_tables(parts).combine_chunks()
    return batch["text"].to_pylist(), _vectors(batch["embedding"].combine_chunks(), content)


def _vectors(column: pa.FixedSizeListArray, content: Content) -> Stored:
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat).reshape(-1, content.vectors.columns)


def _members(archive: Path) -> tuple[str, ...]:
    """Return the names of the files in an .npz file; none if it is broken."""
    try:
        with zipfile.ZipFile(archive) as opened:
            return tuple(opened.namelist())
    except zipfile.BadZipFile:
        return ()


class EmbeddingWriter(Protocol):
    """Writes a file of embeddings whose number of rows is known before.

    Args:
        file: to write.
        rows: number of texts.
        content: what the vectors are.
    """

    def __init__(self, file: Path, rows: int, content: Content) -> None: ...

    def write(self, texts: list[str], vectors: Stored) -> None:
        """Write the next rows.

        Args:
            texts: of these rows.
            vectors: `(len(texts), columns)`, as they are stored.
        """

    def close(self) -> None:
        """Finish the file."""


class _NpyWriter:
    """Writes the header, then the rows, to a plain stream.

    A memory map would be simpler, but on a full disk it ends the process by a signal.
    """

    stream: IO[bytes]

    def __init__(self, file: Path, rows: int, content: Content) -> None:
        self.stream = file.open("wb")
        self.dtype = _write_header(self.stream, rows, content)

    def write(self, texts: list[str], vectors: Stored) -> None:  # noqa: ARG002
        self.stream.write(np.ascontiguousarray(vectors, self.dtype).data)

    def close(self) -> None:
        self.stream.close()


class _NpzWriter(_NpyWriter):
    """Writes the array `format`, then the rows of the array `embeddings`."""

    def __init__(self, file: Path, rows: int, content: Content) -> None:
        self.archive = zipfile.ZipFile(file, "w")
        with self.archive.open(ARRAYS[0], "w") as about:
            np.lib.format.write_array(about, np.array(content.to_json()), allow_pickle=False)
        self.stream = self.archive.open(ARRAYS[1], "w", force_zip64=True)
        self.dtype = _write_header(self.stream, rows, content)

    def close(self) -> None:
        self.stream.close()
        self.archive.close()


def _write_header(stream: IO[bytes], rows: int, content: Content) -> np.dtype[Any]:
    """Write the header of an array in NumPy's format, and return the type of its numbers."""
    shape, dtype = (rows, content.vectors.columns), content.vectors.dtype
    header = {"shape": shape, "fortran_order": False, "descr": dtype.str}
    np.lib.format.write_array_header_1_0(stream, header)
    return dtype


class VectorTable:
    """Writes a .parquet file of vectors, one row group per chunk.

    Args:
        target: file or stream to write.
        content: what the vectors are.
        columns: names of columns of strings, which come before the column `embedding`.
        about: more metadata of the schema.
    """

    def __init__(
        self,
        target: Path | IO[bytes],
        content: Content,
        columns: Sequence[str],
        about: Mapping[bytes, str] | None = None,
    ) -> None:
        vectors = content.vectors
        self.embedding = pa.list_(pa.from_numpy_dtype(vectors.dtype), vectors.columns)
        types = [*[pa.string()] * len(columns), self.embedding]
        self.schema = pa.schema(
            list(zip((*columns, VECTORS), types, strict=True)),
            metadata={METADATA: content.to_json(), **(about or {})},
        )
        self.writer = pq.ParquetWriter(target, self.schema)

    def write(self, strings: Sequence[Sequence[str]], vectors: Stored) -> None:
        """Write the next rows.

        Args:
            strings: of each column, one for each row.
            vectors: `(rows, columns)`, as they are stored.
        """
        flat = pa.array(vectors.reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, type=self.embedding)
        columns = [*(pa.array(one, pa.string()) for one in strings), column]
        self.writer.write_table(pa.table(columns, schema=self.schema))

    def close(self) -> None:
        """Finish the file."""
        self.writer.close()


class _ParquetWriter:
    """Writes the columns `text` and `embedding`."""

    def __init__(self, file: Path, rows: int, content: Content) -> None:  # noqa: ARG002
        self.table = VectorTable(file, content, [TEXT])

    def write(self, texts: list[str], vectors: Stored) -> None:
        self.table.write([texts], vectors)

    def close(self) -> None:
        self.table.close()


WRITERS: dict[str, type[EmbeddingWriter]] = {
    ".npy": _NpyWriter,
    ".npz": _NpzWriter,
    ".parquet": _ParquetWriter,
}
"""The writer for each ending of a file name."""
