"""Encode a file of texts into a file of vectors, in memory that does not grow with the file."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from sentence_transformers import SentenceTransformer

from llm2comp.cache import whole_file
from llm2comp.errors import UserError
from llm2comp.progress import advancing, text_progress
from llm2comp.text_files import read_texts

CHUNK_BATCHES = 16
"""Batches read at once: sorted by length together, so that little is padded."""
CHUNK_CHARACTERS = 4_000_000
"""A chunk of very long texts ends here."""

Vectors = npt.NDArray[np.float32]


def encode_file(
    model: SentenceTransformer,
    file: Path,
    out: Path,
    batch_size: int = 32,
    prompt_name: str | None = None,
) -> int:
    """Encode every text of a file, in order, with a bar of rate and time left.

    Args:
        model: any sentence-transformers model.
        file: .txt (one text a line), .jsonl, .csv or .parquet with a column ``text``.
        out: ``.npy``, float32 of shape ``(rows, dimension)``, or ``.parquet``
            with columns ``text`` and ``embedding``. It appears only when whole.
        batch_size: texts at once; it changes speed, not vectors.
        prompt_name: ``query``, ``document``, or none for a symmetric use.

    Returns:
        The number of rows.

    Raises:
        UserError: if the file or ``out`` is not of these kinds, the file has a
            bad row or none, the model has no such prompt, or a vector is not finite.
    """
    writers: dict[str, type[_Writer]] = {".npy": _NpyWriter, ".parquet": _ParquetWriter}
    if out.suffix not in writers:
        raise UserError(f"--out {out}: vectors are written to {' or '.join(writers)} files")
    if prompt_name not in (None, "query", "document"):
        raise UserError(f"prompt {prompt_name!r} is neither 'query' nor 'document'")
    total = sum(1 for _ in read_texts(file))
    if not total:
        raise UserError(f"{file}: no texts in it")
    done = 0
    with whole_file(out) as unfinished, text_progress() as progress:
        bar = progress.add_task(file.name, total=total)
        with advancing(model, progress, bar):
            writer: _Writer | None = None
            try:
                for texts in chunks(read_texts(file), batch_size):
                    vectors = embed(model, texts, batch_size, prompt_name)
                    _require_finite(vectors, file, done)
                    done += len(texts)
                    if writer is None:
                        writer = writers[out.suffix](unfinished, total, vectors.shape[1])
                    writer.write(texts, vectors)
            finally:
                if writer is not None:
                    writer.close()
        if done != total:
            raise UserError(f"{file} changed while it was read ({total} rows, then {done})")
    return done


def embed(
    model: SentenceTransformer,
    texts: list[str],
    batch_size: int,
    prompt_name: str | None = None,
) -> Vectors:
    """Return float32 ``(len(texts), dimension)``, with the model's query or document prompt."""
    encoders: dict[str | None, Callable[..., npt.ArrayLike]] = {
        None: model.encode,
        "query": model.encode_query,
        "document": model.encode_document,
    }
    vectors = encoders[prompt_name](texts, batch_size=batch_size, show_progress_bar=False)
    return np.asarray(vectors, dtype=np.float32)


def chunks(texts: Iterable[str], batch_size: int) -> Iterator[list[str]]:
    """Yield the texts in order, some batches at once."""
    chunk: list[str] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if len(chunk) == batch_size * CHUNK_BATCHES or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _require_finite(vectors: Vectors, file: Path, before: int) -> None:
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        raise UserError(
            f"{file}: the vector of row {before + bad[0] + 1} is not finite; "
            "load the model in float32, or drop that row"
        )


class _Writer(Protocol):
    def __init__(self, file: Path, rows: int, dimension: int) -> None: ...

    def write(self, texts: list[str], vectors: Vectors) -> None: ...

    def close(self) -> None: ...


class _NpyWriter:
    """Writes the header, then rows behind one another.

    Not through a memory map: on a full disk that ends the process by a signal.
    """

    def __init__(self, file: Path, rows: int, dimension: int) -> None:
        self.stream = file.open("wb")
        header = {"shape": (rows, dimension), "fortran_order": False, "descr": "<f4"}
        np.lib.format.write_array_header_1_0(self.stream, header)

    def write(self, texts: list[str], vectors: Vectors) -> None:  # noqa: ARG002
        self.stream.write(vectors.astype("<f4", copy=False).tobytes())

    def close(self) -> None:
        self.stream.close()


class _ParquetWriter:
    """Writes a row group a chunk."""

    def __init__(self, file: Path, rows: int, dimension: int) -> None:  # noqa: ARG002
        self.vector = pa.list_(pa.float32(), dimension)
        self.schema = pa.schema([("text", pa.string()), ("embedding", self.vector)])
        self.writer = pq.ParquetWriter(file, self.schema)

    def write(self, texts: list[str], vectors: Vectors) -> None:
        flat = pa.array(vectors.reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, type=self.vector)
        self.writer.write_table(pa.table([pa.array(texts), column], schema=self.schema))

    def close(self) -> None:
        self.writer.close()
