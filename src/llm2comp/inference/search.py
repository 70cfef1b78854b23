"""Find the texts of a file that are nearest to a query."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import semantic_search

from llm2comp.data.text_files import read_texts, replace_surrogates, require_texts
from llm2comp.errors import UserError
from llm2comp.inference.embed import embed
from llm2comp.inference.encode_file import chunks, require_finite_rows
from llm2comp.utils.progress import text_progress, track_texts


@dataclass(frozen=True)
class Hit:
    """A text that was found.

    Attributes:
        row: of the text in the file, from 0.
        score: cosine similarity with the query.
        text: the text itself.
    """

    row: int
    score: float
    text: str


def require_query(query: str) -> None:
    """Check that a query has text.

    Raises:
        UserError: if it is blank.
    """
    if not query.strip():
        raise UserError("the query is blank; say what to look for")


def search(
    model: SentenceTransformer, file: Path, query: str, top_k: int = 5, batch_size: int = 32
) -> list[Hit]:
    """Return the texts of a file that are nearest to one query, best first; see `search_all`."""
    return search_all(model, file, [query], top_k, batch_size)[0]


def search_all(
    model: SentenceTransformer,
    file: Path,
    queries: Sequence[str],
    top_k: int = 5,
    batch_size: int = 32,
) -> list[list[Hit]]:
    """Encode a file once, and return the texts that are nearest to each query.

    The texts get the model's document prompt, the queries its query prompt. Memory grows with
    `top_k`, not with the file.

    Args:
        model: any sentence-transformers model.
        file: `.txt` with one text per line, or `.jsonl`, `.csv` or `.parquet` with a column `text`.
        queries: what to look for.
        top_k: texts per query; fewer if the file has fewer.
        batch_size: as in `llm2comp.inference.encode_file.encode_file`.

    Returns:
        One list per query, best first; texts with equal scores are in the order of the file.

    Raises:
        UserError: if `top_k` is not positive, there is no query or a blank one, the file has no
            texts or a row without a text, or an embedding is not finite.
    """
    if top_k < 1:
        raise UserError(f"top_k is {top_k}; ask for at least 1 text")
    if not queries:
        raise UserError("there is no query to search for; give at least one")
    for query in queries:
        require_query(query)
    require_texts(file)
    cleaned = [replace_surrogates(query) for query in queries]
    query_embeddings = torch.from_numpy(embed(model, cleaned, batch_size, "query"))
    if not query_embeddings.isfinite().all():
        raise UserError("the embedding of a query is not finite; use --dtype float32")
    best: list[list[Hit]] = [[] for _ in queries]
    total = sum(1 for _ in read_texts(file))
    top_k = min(top_k, total)  # Python's own functions refuse more than a machine word holds
    rows_before = 0
    with text_progress() as progress:
        task = progress.add_task(file.name, total=total)
        with track_texts(model, progress, task):
            for texts in chunks(read_texts(file), batch_size):
                embeddings = embed(model, texts, batch_size, "document")
                require_finite_rows(embeddings, file, rows_before)
                nearest = semantic_search(
                    query_embeddings, torch.from_numpy(embeddings), top_k=top_k
                )
                for index, neighbours in enumerate(nearest):
                    places = [(int(hit["corpus_id"]), hit["score"]) for hit in neighbours]
                    hits = [Hit(rows_before + i, score, texts[i]) for i, score in places]
                    best[index] = heapq.nsmallest(
                        top_k, [*best[index], *hits], key=lambda hit: (-hit.score, hit.row)
                    )
                rows_before += len(texts)
    return best
