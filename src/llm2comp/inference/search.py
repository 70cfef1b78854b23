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
from llm2comp.inference.encode_file import chunks
from llm2comp.utils.progress import text_progress, track_texts


@dataclass(frozen=True)
class Hit:
    """A text that was found."""

    row: int
    """Its place in the file, from 0."""
    score: float
    """Cosine similarity with the query."""
    text: str


def search(
    model: SentenceTransformer, file: Path, query: str, top_k: int = 5, batch_size: int = 32
) -> list[Hit]:
    """Return the ``top_k`` texts of a file nearest to one query; see :func:`search_all`."""
    return search_all(model, file, [query], top_k, batch_size)[0]


def search_all(
    model: SentenceTransformer,
    file: Path,
    queries: Sequence[str],
    top_k: int = 5,
    batch_size: int = 32,
) -> list[list[Hit]]:
    """Encode a file once and return what is nearest to each query, best first.

    The file's texts get the model's document prompt, queries its query prompt.
    Memory grows with ``top_k`` and not with the file.

    Args:
        model: any sentence-transformers model.
        file: .txt (one text a line), .jsonl, .csv or .parquet with a column ``text``.
        queries: what to look for.
        top_k: texts a query, fewer if the file has fewer.
        batch_size: texts of 64 tokens at once, as in :func:`.encode.encode_file`.

    Raises:
        UserError: if ``top_k`` is not positive, there is no query, or the file
            has a bad row or no rows.
    """
    if top_k < 1:
        raise UserError(f"top_k is {top_k}; ask for at least 1 text")
    if not queries:
        raise UserError("no query to search for")
    require_texts(file)
    cleaned = [replace_surrogates(query) for query in queries]
    wanted = torch.from_numpy(embed(model, cleaned, batch_size, "query"))
    best: list[list[Hit]] = [[] for _ in queries]
    total = sum(1 for _ in read_texts(file))
    before = 0
    with text_progress() as progress:
        bar = progress.add_task(file.name, total=total)
        with track_texts(model, progress, bar):
            for texts in chunks(read_texts(file), batch_size):
                vectors = embed(model, texts, batch_size, "document")
                nearest = semantic_search(wanted, torch.from_numpy(vectors), top_k=top_k)
                for index, found in enumerate(nearest):
                    places = [(int(hit["corpus_id"]), hit["score"]) for hit in found]
                    hits = [Hit(before + at, score, texts[at]) for at, score in places]
                    # By row where scores are equal, so that the order never varies.
                    best[index] = heapq.nsmallest(
                        top_k, [*best[index], *hits], key=lambda hit: (-hit.score, hit.row)
                    )
                before += len(texts)
    return best
