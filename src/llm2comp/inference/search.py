"""Find the texts of a file that are nearest to a query."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from llm2comp.data.text_files import read_texts, replace_surrogates, require_texts
from llm2comp.errors import UserError, counted
from llm2comp.inference.embed import embed
from llm2comp.inference.embedding_files import Content, content_of, read_vectors, sample_vectors
from llm2comp.inference.encode_file import chunks, require_finite_rows
from llm2comp.inference.vector_format import (
    Stored,
    VectorFormat,
    require_dim,
    smallest_cosine,
    truncate,
)
from llm2comp.model.matryoshka.first_tokens import memory_tokens_of
from llm2comp.model.multi_vector.max_sim import MaxSim
from llm2comp.model.multi_vector.memory_vectors import memory_token_ids, sharing_memory_vectors
from llm2comp.utils.progress import text_progress, track_texts

CHECKED = 8
"""Texts of a file of vectors that are encoded again, to see whose vectors they are."""
SAME, SAME_SIGNS = 0.99, 0.9
"""Smallest cosine of equal vectors, and of equal binary ones; rounding turns a few signs."""


@dataclass(frozen=True)
class Hit:
    """A text that was found.

    Attributes:
        row: of the text in the file, from 0.
        score: cosine similarity of the stored embedding with the query, or MaxSim.
        text: the text itself.
    """

    row: int
    score: float
    text: str


def require_query(query: str) -> str:
    """Return a query as a tokenizer takes it.

    Raises:
        UserError: if it is blank, or no string.
    """
    if not isinstance(query, str):
        raise UserError(f"the query is of type {type(query).__name__}; give a string")
    if not query.strip():
        raise UserError("the query is blank; say what to look for")
    return replace_surrogates(query)


def search(
    model: SentenceTransformer,
    file: Path,
    query: str,
    top_k: int = 5,
    batch_size: int = 32,
    vectors: VectorFormat | None = None,
) -> list[Hit]:
    """Return the texts of a file that are nearest to one query, best first; see `search_all`."""
    return search_all(model, file, [query], top_k, batch_size, vectors)[0]


def search_k_vectors(
    model: SentenceTransformer,
    name: str,
    file: Path,
    query: str,
    top_k: int = 5,
    batch_size: int = 32,
) -> list[Hit]:
    """Return the texts of a file with the largest MaxSim with one query, best first.

    Args:
        model: an encoder that pools several memory tokens.
        name: of the encoder, for the message.
        file: as in `search_all`.
        query: what to look for.
        top_k: as in `search_all`.
        batch_size: as in `search_all`.

    Raises:
        UserError: as `search_all`, or if the encoder has one vector per text or the file has.
    """
    max_sim = MaxSim(len(memory_token_ids(model, name)))
    if content_of(file) is not None:
        raise UserError(
            f"{file} holds one vector per text, and not {max_sim.k}; name the texts themselves, or "
            "make an index with --vectors k"
        )
    encoder = sharing_memory_vectors(model, name)
    return search_all(encoder, file, [query], top_k, batch_size, max_sim=max_sim)[0]


def search_all(
    model: SentenceTransformer,
    file: Path,
    queries: Sequence[str],
    top_k: int = 5,
    batch_size: int = 32,
    vectors: VectorFormat | None = None,
    max_sim: MaxSim | None = None,
) -> list[list[Hit]]:
    """Encode a file once, and return the texts that are nearest to each query.

    The texts get the model's document prompt, the queries its query prompt. Memory grows with
    `top_k`, not with the file. A `.parquet` file that `encode_file` wrote is not encoded again.

    Args:
        model: any sentence-transformers model.
        file: `.txt` with one text per line, or `.jsonl`, `.csv` or `.parquet` with a column `text`.
        queries: what to look for.
        top_k: texts per query; fewer if the file has fewer.
        batch_size: as in `llm2comp.inference.encode_file.encode_file`.
        vectors: how the embeddings of the texts are stored; None is as the file has them, or else
            whole, in float32.
        max_sim: compares embeddings that are k vectors in one row; None is by cosine.

    Returns:
        One list per query, best first; texts with equal scores are in the order of the file.

    Raises:
        UserError: if `top_k` is not positive, there is no query or a blank one, the file has no
            texts or a row without a text, an embedding is not finite, or the file has vectors of
            another model, prompt or format.
    """
    if top_k < 1:
        raise UserError(f"top_k is {top_k}; ask for at least 1 text")
    if not queries:
        raise UserError("there is no query to search for; give at least one")
    cleaned = [require_query(query) for query in queries]
    require_texts(file)
    query_embeddings = embed(model, cleaned, batch_size, "query")
    if not np.isfinite(query_embeddings).all():
        raise UserError("the embedding of a query is not finite; use --dtype float32")
    content = content_of(file)
    if content is not None:
        _require_same(model, file, content)
        vectors = content.vectors
    vectors = vectors or VectorFormat(query_embeddings.shape[1])
    query_embeddings = truncate(query_embeddings, vectors.dim)
    best: list[list[Hit]] = [[] for _ in queries]
    total = sum(1 for _ in read_texts(file))
    top_k = min(top_k, total)  # Python's own functions refuse more than a machine word holds
    if content is None:
        encoded = _encoded(model, file, total, batch_size, vectors)
    else:
        encoded = read_vectors(file, content)
    rows_before = 0
    for texts, stored in encoded:
        if max_sim is None:
            found = torch.from_numpy(vectors.similarities(query_embeddings, stored, top_k))
        else:
            found = max_sim(torch.from_numpy(query_embeddings), torch.from_numpy(stored))
        nearest = found.topk(min(top_k, len(texts)))
        for index in range(len(queries)):
            scores, places = (part[index].tolist() for part in nearest)
            hits = [
                Hit(rows_before + i, score, texts[i])
                for i, score in zip(places, scores, strict=True)
            ]
            best[index] = heapq.nsmallest(
                top_k, [*best[index], *hits], key=lambda hit: (-hit.score, hit.row)
            )
        rows_before += len(texts)
    return best


def _encoded(
    model: SentenceTransformer, file: Path, total: int, batch_size: int, vectors: VectorFormat
) -> Iterator[tuple[list[str], Stored]]:
    """Yield the texts of a file and their embeddings as they are stored, with a progress bar."""
    done = 0
    with text_progress() as progress:
        task = progress.add_task(file.name, total=total)
        with track_texts(model, progress, task):
            for texts in chunks(read_texts(file), batch_size):
                embeddings = embed(model, texts, batch_size, "document")
                require_finite_rows(embeddings, file, done)
                done += len(texts)
                yield texts, vectors.store(embeddings)


def _require_same(model: SentenceTransformer, file: Path, content: Content) -> None:
    """Check on a few texts that the vectors of a file are those of a model.

    Raises:
        UserError: if they are those of another model, or of another prompt.
    """
    vectors, tokens = content.vectors, content.memory_tokens
    own = memory_tokens_of(model)
    if None not in (tokens, own) and tokens != own:
        raise UserError(
            f"{file} holds vectors of {counted(tokens or 0, 'memory token')}, and this encoder "
            f"appends {own}; load it with memory_tokens={tokens}"
        )
    known, stored = sample_vectors(file, content, CHECKED)
    rows = [row for row, text in enumerate(known) if text.strip()]
    if not rows:
        return
    same = vectors.dim <= require_dim(model, None)
    if same:
        embeddings = embed(model, [known[row] for row in rows], CHECKED, "document")
        fresh = vectors.restore(vectors.store(embeddings))
        wanted = SAME_SIGNS if vectors.precision == "binary" else SAME
        same = smallest_cosine(vectors.restore(stored[rows]), fresh) >= wanted
    if not same:
        prompt = f"the prompt {content.prompt!r}" if content.prompt else "no prompt"
        or_so = "" if content.prompt == "document" else f", or encoded with {prompt}"
        raise UserError(
            f"{file} holds vectors of another encoder{or_so}; encode its texts again with this "
            "encoder and --prompt document"
        )
