"""An index of texts: an encoder, and the table of its vectors."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np
from sentence_transformers import SentenceTransformer

from llm2comp.data.text_files import require_id
from llm2comp.errors import UserError, counted
from llm2comp.inference.embed import embed
from llm2comp.inference.load import load
from llm2comp.inference.search import require_query
from llm2comp.inference.vector_format import Embeddings, require_dim, to_unit_length, truncate
from llm2comp.model.folder.reference import TEXTS
from llm2comp.model.matryoshka.first_tokens import memory_tokens_of
from llm2comp.model.multi_vector.memory_vectors import memory_token_ids, sharing_memory_vectors
from llm2comp.retrieval.about import About, require_options
from llm2comp.retrieval.corpus import Corpus, given_rows
from llm2comp.retrieval.filters import require_filter
from llm2comp.retrieval.rows import Kind, Kinds, Row, Value
from llm2comp.retrieval.store import Store, has_index, require_index_folder, writing
from llm2comp.utils.choices import IndexPrecision, Precision, Prompt, SearchBy, VectorCount
from llm2comp.utils.files import user_path
from llm2comp.utils.progress import text_progress, track_texts

CHUNK = 2_048
"""Texts that are encoded and then stored at once. What was stored is not encoded again."""


@dataclass(frozen=True)
class IndexHit:
    """A text of an index that was found.

    Attributes:
        id: of the text.
        score: cosine similarity with the query, or MaxSim in an index of k vectors; by text BM25;
            hybrid the sum of 1 / (60 + rank).
        text: the text itself.
        metadata: its other columns; None where it has no value.
    """

    id: str
    score: float
    text: str
    metadata: Mapping[str, Value]


@dataclass(frozen=True)
class Changes:
    """What was done to an index.

    Attributes:
        added: texts with new ids.
        updated: texts whose ids were there with another text or other metadata.
        unchanged: texts that were there as they are.
    """

    added: int
    updated: int
    unchanged: int


class Index:
    """A folder of texts and their vectors, which outlasts the process.

    `len(index)` is the number of texts. A change is stored when the call returns. Other processes
    may search meanwhile; only one may change the index at a time.

    Args:
        folder: of the index.
        model: name, folder or loaded model of the encoder; None is the one that made the index.
        dtype: as `llm2comp.load` takes it.

    Raises:
        UserError: if the folder holds no index.
    """

    def __init__(
        self,
        folder: Path,
        model: str | SentenceTransformer | None = None,
        dtype: Precision = "auto",
    ) -> None:
        self.folder = folder
        self._store = Store(folder)
        self._model = self._store.about.model if model is None else model
        self._dtype = dtype

    def __len__(self) -> int:
        return len(self._store)

    @property
    def about(self) -> About:
        """What the index says of itself: its encoder, and how vectors are stored."""
        return self._store.about

    @property
    def columns(self) -> dict[str, Kind]:
        """The kinds of the columns of metadata, by name."""
        return self._store.kinds.known

    def __repr__(self) -> str:
        return f"Index({str(self.folder)!r}, {counted(len(self), 'text')})"

    @functools.cached_property
    def encoder(self) -> SentenceTransformer:
        """The encoder, which is loaded when it is first needed, and checked.

        For an index of k vectors, its embeddings are those that `fit` takes.

        Raises:
            UserError: if it cannot be loaded, or its vectors are others than those of the index.
        """
        model = self._model
        if model is None:
            raise UserError(f"{self.folder} was made with a loaded model; give that model")
        about = self.about
        encoder = load_for(about, model, self._dtype) if isinstance(model, str) else model
        about.require_same(*_reference(encoder), self.folder, memory_tokens_of(encoder))
        if about.vectors == 1:
            return encoder
        return sharing_memory_vectors(encoder, about.model or "the encoder", beside="always")

    def search(
        self, query: str, top_k: int = 5, *, where: str | None = None, by: SearchBy = "vector"
    ) -> list[IndexHit]:
        """Return the texts that answer a query best, best first.

        Args:
            query: what to look for.
            top_k: number of texts; fewer if there are fewer.
            where: condition on id, text and metadata in SQL, such as `"year >= 2020"`;
                docs/guides/index.md says what it may have.
            by: `"vector"` ranks by embeddings, `"text"` by BM25 over words, and
                `"hybrid"` by both.

        Raises:
            UserError: if the query is blank, `top_k` is no integer from 1 on, or the condition is
                none.
        """
        vector = None if by == "text" else self._embed([require_query(query)], "query")[0]
        return self.find(query, vector, top_k, where=where, by=by)

    def find(
        self,
        query: str,
        vector: Embeddings | None,
        top_k: int = 5,
        *,
        where: str | None = None,
        by: SearchBy = "vector",
    ) -> list[IndexHit]:
        """Search as `search` does, for a query whose embedding is there. Threads may share it.

        Args:
            query: what to look for.
            vector: its embedding as a row of what `fit` returns; None if `by` is `"text"`.
            top_k: as in `search`.
            where: as in `search`.
            by: as in `search`.

        Raises:
            UserError: as `search` does.
        """
        query = require_query(query)
        if isinstance(top_k, bool) or not isinstance(top_k, numbers.Integral) or top_k < 1:
            raise UserError(f"top_k is {top_k}; give a whole number of at least 1")
        if not isinstance(where, str | None):
            raise UserError(f"the filter {where!r} is no string; give a condition in SQL")
        if by not in get_args(SearchBy):
            raise UserError(f"by {by!r} is not one of {', '.join(get_args(SearchBy))}")
        if vector is not None and not np.isfinite(vector).all():
            raise UserError("the embedding of the query is not finite; use --dtype float32")
        top_k = min(int(top_k), max(1, len(self)))
        if where is not None:
            require_filter(where)
        # In parentheses, what follows a condition in SQL is an error; else it would be ignored.
        condition = None if where is None else f"({where})"
        with self._store.explained(where):
            if vector is None:
                found = self._store.matching(query, top_k, condition)
            elif by == "vector":
                found = self._store.nearest(vector, top_k, condition)
            else:
                found = self._store.hybrid(query, vector, top_k, condition)
        return [IndexHit(row.id, score, row.text, row.metadata) for row, score in found]

    def add(self, rows: Iterable[Mapping[str, object]], batch_size: int = 32) -> Changes:
        """Add texts, and replace those whose ids are there.

        Args:
            rows: each with `id`, `text`, and any metadata: strings, numbers and bools.
            batch_size: texts of 64 tokens per batch.

        Raises:
            UserError: if a row has no id or no text, two have one id, a value has another type
                than in other rows, or another process changes the index. Nothing is added then.
        """
        given, kinds = given_rows(rows)
        with writing(self.folder):
            kinds = self._store.kinds.joined(kinds, "rows")
            return self._put_all(iter(given), kinds, batch_size, lambda _: None)

    def add_corpus(self, corpus: Corpus, batch_size: int = 32) -> Changes:
        """Add the rows of a corpus, and replace those whose ids are there, with a progress bar.

        Raises:
            UserError: if a column has another type in the index, an embedding is not finite, or
                the corpus or another process changes something meanwhile, or standard input has
                other texts than when it was read before.
        """
        encoder = self.encoder
        with writing(self.folder), text_progress() as progress:
            kinds = self._store.kinds.joined(corpus.kinds, corpus.name)
            task = progress.add_task(corpus.name, total=corpus.total)
            skip = functools.partial(progress.advance, task)
            with track_texts(encoder, progress, task):
                rows = corpus.rows()
                done = self._put_all(rows, kinds, batch_size, skip, replaces=corpus.name != "-")
        if done.added + done.updated + done.unchanged != corpus.total:
            raise UserError(f"{corpus.name} changed while it was read; run it again")
        return done

    def delete(self, ids: str | int | Sequence[str | int]) -> int:
        """Delete the texts of some ids, and return how many were there.

        Raises:
            UserError: if one is no id, or another process changes the index.
        """
        with writing(self.folder):
            several = ids if isinstance(ids, Iterable) and not isinstance(ids, str) else [ids]
            return self._store.delete([require_id(one, "delete") for one in several])

    def _put_all(
        self,
        rows: Iterator[Row],
        kinds: Kinds,
        batch_size: int,
        skip: Callable[[int], object],
        replaces: bool = True,
    ) -> Changes:
        """Store rows in chunks, and leave out those that are there; `skip` is told how many."""
        added = updated = unchanged = 0
        while chunk := list(islice(rows, CHUNK)):
            there = self._store.rows([row.id for row in chunk])
            new = [row for row in chunk if not _same(there.get(row.id), row, kinds)]
            known = [row.id for row in new if row.id in there]
            if known and not replaces:
                raise UserError(
                    f"{known[0]} is another text in the index, and would be replaced: lines of "
                    "standard input are numbered; write them to a file, or give rows ids (.jsonl)"
                )
            skip(len(chunk) - len(new))
            if new:
                vectors = self._embed([row.text for row in new], "document", batch_size)
                bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
                if bad.size:
                    raise UserError(
                        f"the embedding of {new[bad[0]].id} is not finite; use --dtype float32, or "
                        "remove that text"
                    )
                self._store.put(new, vectors, kinds)
            added, updated = added + len(new) - len(known), updated + len(known)
            unchanged += len(chunk) - len(new)
        self._store.optimize()
        return Changes(added, updated, unchanged)

    def fit(self, embeddings: Embeddings) -> Embeddings:
        """Return embeddings `(texts, dimension)` as the index has them.

        Args:
            embeddings: of `encoder`, at whole length.

        Returns:
            `(texts, dim)`; for an index of k vectors `(texts, dim + k * dim)`, the one vector
            first.
        """
        dim, vectors = self.about.dim, self.about.vectors
        one = to_unit_length(truncate(embeddings, dim))
        return one if vectors == 1 else np.hstack([one, embeddings[:, -vectors * dim :]])

    def _embed(self, texts: list[str], prompt: Prompt, batch_size: int = 32) -> Embeddings:
        return self.fit(embed(self.encoder, texts, batch_size, prompt))


def build(
    model: str | SentenceTransformer,
    corpus: str,
    out: Path,
    *,
    batch_size: int = 32,
    dtype: Precision = "auto",
    dim: int | None = None,
    precision: IndexPrecision | None = None,
    memory_tokens: int | None = None,
    vectors: VectorCount | None = None,
) -> tuple[Index, Changes]:
    """Make an index of a corpus, or bring one that is there up to date.

    What a call that was stopped has stored is not encoded again.

    Args:
        model: name, folder or loaded model of the encoder.
        corpus: a file, a folder, a pattern, or `-`.
        out: folder of the index.
        batch_size: texts of 64 tokens per batch.
        dtype: of the encoder, as `llm2comp.load` takes it.
        dim: leading dimensions to keep; None is all, or as in the index that is there.
        precision: in which vectors are compared first, or the k vectors are stored; None is int8,
            or as in the index.
        memory_tokens: of the encoder, as `llm2comp.load` takes it; None is all, or as in the index.
        vectors: `k` also stores the k memory vectors of each text, which MaxSim compares with those
            of a query; None is one, or as in the index.

    Raises:
        UserError: if the corpus has a bad row, or `out` holds something else, an index of another
            encoder, or one with another `dim`, `precision` or `vectors`; if the encoder has no k
            vectors.
    """
    require_index_folder(out)
    about = Store(out).about if has_index(out) else None
    if about is None:
        require_options(dim, precision, vectors)
    else:
        about.require_options(dim, precision, vectors, out)
    checked = Corpus.survey(corpus, out.resolve().parent)
    if not isinstance(model, str):
        encoder = model
    elif about is None or memory_tokens is not None:
        encoder = load(model, dtype, memory_tokens=memory_tokens)
    else:
        encoder = load_for(about, model, dtype)
    if about is None:
        document, query = _reference(encoder)
        name = stored_name(model)
        k = len(memory_token_ids(encoder, name or "the encoder")) if vectors == "k" else 1
        about = About(
            format=1 if k == 1 else 2,
            model=name,
            dim=require_dim(encoder, dim),
            precision=precision or "int8",
            vectors=k,
            document=document.round(5).tolist(),
            query=query.round(5).tolist(),
            memory_tokens=memory_tokens_of(encoder),
        )
        with writing(out):
            Store.create(out, about)
    index = Index(out, encoder)
    return index, index.add_corpus(checked, batch_size)


def load_for(about: About, model: str, dtype: Precision) -> SentenceTransformer:
    """Load an encoder for an index, with as many memory tokens as when the index was made.

    Args:
        about: what the index says of itself.
        model: name or folder of the encoder.
        dtype: as `llm2comp.load` takes it.

    Raises:
        UserError: if it cannot be loaded.
    """
    encoder = load(model, dtype)
    wanted, has = about.memory_tokens, memory_tokens_of(encoder)
    if wanted is None or has is None or wanted >= has:
        return encoder
    return load(model, dtype, memory_tokens=wanted)


def stored_name(model: str | SentenceTransformer) -> str | None:
    """Return the name by which an index finds its encoder from any folder; None if it is loaded."""
    if not isinstance(model, str):
        return None
    folder = user_path(model)
    return str(folder.resolve()) if folder.is_dir() else model


def _reference(encoder: SentenceTransformer) -> tuple[Embeddings, Embeddings]:
    """Return the embeddings of the fixed texts, as documents and as queries."""
    texts = list(TEXTS)
    return embed(encoder, texts, len(texts), "document"), embed(encoder, texts, len(texts), "query")


def _same(there: Row | None, row: Row, kinds: Kinds) -> bool:
    if there is None or there.text != row.text:
        return False
    return _given(there.metadata) == _given(kinds.values(row))


def _given(metadata: Mapping[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in metadata.items() if value is not None}
