"""Encode a file of texts into a file of vectors, in memory that does not grow with the file."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from llm2comp.data.text_files import read_texts, require_texts
from llm2comp.errors import UserError
from llm2comp.inference.compiled import CompiledEncoder
from llm2comp.inference.embed import embed
from llm2comp.inference.embedding_files import (
    WRITERS,
    Embeddings,
    EmbeddingWriter,
    require_writable,
)
from llm2comp.inference.token_batching import TokenBatched
from llm2comp.inference.worker_pool import Workers, start
from llm2comp.utils.files import atomic_file
from llm2comp.utils.progress import text_progress, track_texts

CHUNK_BATCHES = 256
"""Batches of texts read at once, a worker. Sorted by length together, 8,192 texts are padded by
1 to 2 %, where 512 sentences would be by 14."""
CHUNK_CHARACTERS = 16_000_000
"""A chunk of very long texts ends here."""


def encode_file(
    model: SentenceTransformer,
    file: Path,
    out: Path,
    batch_size: int = 32,
    prompt_name: str | None = None,
    workers: int = 1,
) -> int:
    """Encode every text of a file, in order, with a bar of rate and time left.

    Args:
        model: any sentence-transformers model.
        file: .txt (one text a line), .jsonl, .csv or .parquet with a column ``text``.
        out: ``.npy``, float32 of shape ``(rows, dimension)``, or ``.parquet``
            with columns ``text`` and ``embedding``. It appears only when whole.
        batch_size: texts of 64 tokens at once (of any length, for a model that is not
            :class:`.TokenBatched`); it changes speed, not vectors.
        prompt_name: ``query``, ``document``, or none for a symmetric use.
        workers: processes that share the work and the threads; see :func:`.workers.start`.

    Returns:
        The number of rows.

    Raises:
        UserError: if the file or ``out`` is not of these kinds, the file has a
            bad row or none, the model has no such prompt, or a vector is not finite; or if
            there are several workers and the model cannot be shared by them.
    """
    require_writable(out)
    require_texts(file)
    if prompt_name not in (None, "query", "document"):
        raise UserError(f"prompt {prompt_name!r} is neither 'query' nor 'document'")
    total = sum(1 for _ in read_texts(file))
    done = 0
    # The workers come first: a model with the bar's hook cannot be sent to them.
    with _pool(model, workers) as pool, atomic_file(out) as unfinished, text_progress() as progress:
        bar = progress.add_task(file.name, total=total)
        with track_texts(model, progress, bar, pool):
            writer: EmbeddingWriter | None = None
            try:
                for texts in chunks(read_texts(file), batch_size, workers):
                    vectors = embed(model, texts, batch_size, prompt_name, pool)
                    _require_finite(vectors, file, done)
                    done += len(texts)
                    if writer is None:
                        writer = WRITERS[out.suffix](unfinished, total, vectors.shape[1])
                    writer.write(texts, vectors)
            finally:
                if writer is not None:
                    writer.close()
        if done != total:
            raise UserError(f"{file} changed while it was read ({total} rows, then {done})")
    return done


def _pool(model: SentenceTransformer, count: int) -> AbstractContextManager[Workers | None]:
    if count < 1:
        raise UserError(f"workers is {count}; there must be at least 1")
    if count == 1:
        return nullcontext()
    if not isinstance(model, TokenBatched) or isinstance(model, CompiledEncoder):
        raise UserError(
            "workers need a model that llm2comp.load loaded in PyTorch; a compiled one divides its "
            "work by itself"
        )
    return start(model, count)


def chunks(texts: Iterable[str], batch_size: int, workers: int = 1) -> Iterator[list[str]]:
    """Yield the texts in order, many batches at once, so many a worker."""
    chunk: list[str] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        full = len(chunk) == batch_size * CHUNK_BATCHES * workers
        if full or characters >= CHUNK_CHARACTERS * workers:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _require_finite(vectors: Embeddings, file: Path, before: int) -> None:
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        raise UserError(
            f"{file}: the vector of row {before + bad[0] + 1} is not finite; "
            "give --dtype float32, or drop that row"
        )
