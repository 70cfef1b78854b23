"""Encode a file of texts into a file of embeddings; memory does not grow with the file."""

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from llm2comp.data.text_files import read_texts, require_texts
from llm2comp.errors import UserError, counted
from llm2comp.inference.compiled import CompiledEncoder
from llm2comp.inference.embed import embed
from llm2comp.inference.embedding_files import (
    WRITERS,
    Content,
    EmbeddingWriter,
    require_writable,
)
from llm2comp.inference.token_batching import TokenBatched
from llm2comp.inference.vector_format import Embeddings, VectorFormat
from llm2comp.inference.worker_pool import Workers, start
from llm2comp.model.matryoshka.first_tokens import memory_tokens_of
from llm2comp.utils.files import atomic_file
from llm2comp.utils.progress import text_progress, track_texts

CHUNK_BATCHES = 256
"""Batches per chunk and per worker. Batches are formed within a chunk: with chunks of 8,192
sentences padding adds 1 to 2 % of tokens, with chunks of 512 it adds 14 %."""
CHUNK_CHARACTERS = 16_000_000
"""A chunk per worker ends here at the latest, for files of very long texts."""


def encode_file(
    model: SentenceTransformer,
    file: Path,
    out: Path,
    batch_size: int = 32,
    prompt_name: str | None = None,
    workers: int = 1,
    vectors: VectorFormat | None = None,
) -> int:
    """Encode every text of a file, in order, with a progress bar on standard error.

    Args:
        model: any sentence-transformers model.
        file: `.txt` with one text per line, or `.jsonl`, `.csv` or `.parquet` with a column `text`.
        out: `.npy` for an array `(rows, dimension)`, `.npz` for the arrays `embeddings` and
            `format`, or `.parquet` for columns `text` and `embedding`; see
            `llm2comp.inference.embedding_files`. The file appears only when it is complete.
        batch_size: texts of 64 tokens per batch; texts of any length for a model that is not a
            `llm2comp.inference.token_batching.TokenBatched`. It changes speed, not embeddings.
        prompt_name: `query` or `document` for the model's prompt of that name; None for no prompt.
        workers: processes that share the work and the threads, see
            `llm2comp.inference.worker_pool.start`.
        vectors: how embeddings are stored; None stores them whole, in float32.

    Returns:
        The number of rows.

    Raises:
        UserError: if `file` or `out` is of another kind, `file` has no texts or a row without a
            text, `prompt_name` is another name, an embedding is not finite, or several workers
            cannot share the model.
    """
    require_writable(out, file, vectors.precision if vectors else "float32")
    require_texts(file)
    if prompt_name not in (None, "query", "document"):
        raise UserError(f"prompt {prompt_name!r} is neither 'query' nor 'document'")
    total = sum(1 for _ in read_texts(file))
    done = 0
    # The workers start first, because a model with the progress bar's hook cannot be sent to them.
    with (
        workers_for(model, workers) as pool,
        atomic_file(out) as partial,
        text_progress() as progress,
    ):
        task = progress.add_task(file.name, total=total)
        with track_texts(model, progress, task, pool):
            writer: EmbeddingWriter | None = None
            try:
                for texts in chunks(read_texts(file), batch_size, workers):
                    embeddings = embed(model, texts, batch_size, prompt_name, pool)
                    require_finite_rows(embeddings, file, done)
                    done += len(texts)
                    vectors = vectors or VectorFormat(embeddings.shape[1])
                    if writer is None:
                        content = Content(vectors, prompt_name, memory_tokens_of(model))
                        writer = WRITERS[out.suffix](partial, total, content)
                    writer.write(texts, vectors.store(embeddings))
            finally:
                if writer is not None:
                    writer.close()
        if done != total:
            raise UserError(
                f"{file} changed while it was read: it had {counted(total, 'row')}, then "
                f"{done}; run it again"
            )
    return done


def workers_for(model: SentenceTransformer, count: int) -> AbstractContextManager[Workers | None]:
    """Start worker processes; none for a count of 1.

    Raises:
        UserError: if there are too few or too many, or the model cannot be shared.
    """
    if count < 1:
        raise UserError(f"workers is {count}; there must be at least 1")
    most = max(2, os.cpu_count() or 1)
    if count > most:
        raise UserError(f"workers is {count}; more than {most} would be slower on this machine")
    if count == 1:
        return nullcontext()
    if not isinstance(model, TokenBatched) or isinstance(model, CompiledEncoder):
        raise UserError(
            "several workers need a PyTorch model that llm2comp.load loaded; a compiled one uses "
            "all threads without workers"
        )
    return start(model, count)


def chunks(texts: Iterable[str], batch_size: int, workers: int = 1) -> Iterator[list[str]]:
    """Yield the texts in order, as lists of many batches.

    Args:
        texts: are read as they are needed.
        batch_size: texts per batch.
        workers: a chunk has this many times the texts of one worker's chunk.
    """
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


def require_finite_rows(embeddings: Embeddings, file: Path, rows_before: int) -> None:
    """Check a chunk's embeddings; `rows_before` rows of the file precede the chunk.

    Raises:
        UserError: if a number is not finite.
    """
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if bad.size:
        raise UserError(
            f"{file}: the embedding of row {rows_before + bad[0] + 1} is not finite; "
            "use --dtype float32, or remove that row"
        )
