"""The table of an index, in LanceDB: what it does by itself is left to it.

Every change is one version of the table: it is there whole, or not at all, also if the process is
killed. https://lance.org/format/table/transaction/
"""

from __future__ import annotations

import datetime
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout

from llm2comp.errors import UserError, one_line
from llm2comp.inference.vector_format import Embeddings
from llm2comp.retrieval import k_vectors
from llm2comp.retrieval.about import KEY, About, read_about
from llm2comp.retrieval.rows import ID, TEXT, VECTOR, VECTORS, Kind, Kinds, Row
from llm2comp.utils.choices import IndexPrecision
from llm2comp.utils.files import require_folder

if TYPE_CHECKING:
    from lancedb.table import Table

TABLE, LOCK = "texts", "writer.lock"
"""What is in the folder of an index."""
TYPES: dict[Kind, pa.DataType] = {
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "str": pa.string(),
}
SCORE, DISTANCE = "_score", "_distance"
"""What LanceDB adds to the rows that it finds: BM25, and 1 - the product."""
EXACT_UP_TO = 20_000
"""Among at most this many vectors, a search compares all of them whole, in about 10 ms."""
CANDIDATES: dict[IndexPrecision, int] = {"float32": 1, "int8": 4, "binary": 10}
"""Of vectors in fewer bits, this many times the wanted texts are compared with their floats, ..."""
FEWEST: dict[IndexPrecision, int] = {"float32": 1, "int8": 40, "binary": 200}
"""... and at least this many, so that a search for one text finds the first of a search for ten."""
RERANKED = 200
"""In an index of k vectors per text, MaxSim ranks the texts that are nearest by one vector: this
many more than are wanted."""
FUSED = 50
"""The best texts of each of the two searches that a hybrid search joins. If more are wanted, as
many as that."""
REPLACED_FOR = datetime.timedelta(minutes=1)
"""Files that were replaced so long ago are removed at the next change."""
ALL = 1_000_000
"""More than there are clusters in an index."""
STALE = 0.1
"""A search compares vectors that are not in its index one by one. From this share on, the index is
made anew."""


def has_index(folder: Path) -> bool:
    """Return whether a folder holds an index."""
    return any((folder / f"{TABLE}.lance" / "_versions").glob("*.manifest"))


class ReplacedError(UserError):
    """The index was removed, or another one was made in its folder, while it was open."""


class Store:
    """The table of an index.

    Args:
        folder: of the index, which exists.

    Attributes:
        about: what the index says of itself.

    Raises:
        UserError: if the folder holds no index, or one of another version, or LanceDB is missing.
    """

    def __init__(self, folder: Path) -> None:
        if not has_index(folder):
            raise UserError(f"{folder}: holds no index; make one with llm2comp index")
        self.folder = folder
        self.table: Table = _connect(folder).open_table(TABLE)
        self.about = read_about(self.table.schema.metadata, folder)

    @classmethod
    def create(cls, folder: Path, about: About) -> Store:
        """Make an empty index in a folder.

        Raises:
            UserError: if LanceDB is missing.
        """
        columns = [(ID, pa.string()), (TEXT, pa.string())]
        columns.append((VECTOR, pa.list_(pa.float32(), about.dim)))
        schema = pa.schema(columns, metadata={KEY: about.model_dump_json()})
        if about.vectors > 1:
            schema = schema.append(k_vectors.field_of(about))
        _connect(folder).create_table(TABLE, schema=schema)
        store = cls(folder)
        store._index_words()  # first, because a search without it would have other rules for words
        return store

    def __len__(self) -> int:
        with self._there():
            return int(self.table.count_rows())

    @property
    def kinds(self) -> Kinds:
        """The columns of metadata.

        Raises:
            ReplacedError: if the table is another one. All that reads or adds rows asks for this.
        """
        names = {str(kind): name for name, kind in TYPES.items()}
        with self._there():
            schema = self.table.schema
        if read_about(schema.metadata, self.folder) != self.about:
            raise ReplacedError(f"{self.folder}: the index was made anew; open it again")
        known = {one.name: one.type for one in schema}
        for name in (ID, TEXT, VECTOR, VECTORS):
            known.pop(name, None)
        return Kinds({name: names[str(kind)] for name, kind in known.items()})

    def rows(self, ids: Sequence[str]) -> dict[str, Row]:
        """Return the rows of some ids, as far as they are there."""
        wanted = [ID, TEXT, *self.kinds.known]
        found = self.table.search().where(_among(ids)).select(wanted).limit(len(ids) or 1)
        return {row.id: row for row in map(_row, found.to_list())}

    def put(self, rows: Sequence[Row], vectors: Embeddings, kinds: Kinds) -> None:
        """Add rows, and replace those whose ids are there. It is done when this returns.

        Args:
            rows: with distinct ids.
            vectors: of the rows, `(rows, dim)`; in an index of k vectors, these follow, `(rows,
                dim + k * dim)`.
            kinds: the columns of the index, which may have more than it had.
        """
        new = [pa.field(name, TYPES[kind]) for name, kind in kinds.items()]
        new = [one for one in new if one.name not in self.table.schema.names]
        if new:
            self.table.add_columns(new)
        dim = self.about.dim
        flat = pa.array(vectors[:, :dim].reshape(-1), pa.float32())
        values = [kinds.values(row) for row in rows]
        columns = {
            ID: pa.array([row.id for row in rows], pa.string()),
            TEXT: pa.array([row.text for row in rows], pa.string()),
            VECTOR: pa.FixedSizeListArray.from_arrays(flat, dim),
        } | {
            name: pa.array([one[name] for one in values], TYPES[kind])
            for name, kind in kinds.items()
        }
        if self.about.vectors > 1:
            columns[VECTORS] = k_vectors.pack(vectors[:, dim:], self.about)
        replaced = self.table.merge_insert(ID).when_matched_update_all()
        replaced.when_not_matched_insert_all().execute(pa.table(columns))

    def delete(self, ids: Sequence[str]) -> int:
        """Delete the rows of some ids, and return how many were there."""
        return int(self.table.delete(_among(ids)).num_deleted_rows) if ids else 0

    def optimize(self) -> None:
        """Bring what searches use up to date with the rows. A search finds all rows before too."""
        import lancedb.index as indexes

        made = self._index_words()
        rows = unindexed = len(self)
        if VECTOR in made:
            unindexed = self.table.index_stats(made[VECTOR]).num_unindexed_rows
        # Files that this replaces may still be read by a search of another process.
        self.table.optimize(cleanup_older_than=REPLACED_FOR)
        if rows > EXACT_UP_TO and unindexed >= STALE * rows:
            config = {
                "float32": indexes.IvfFlat(distance_type="dot"),
                "int8": indexes.IvfRq(distance_type="dot", num_bits=8),
                "binary": indexes.IvfRq(distance_type="dot", num_bits=1),
            }[self._precision]
            self.table.create_index(VECTOR, config=config)

    def _index_words(self) -> dict[str, str]:
        """Make the indexes of ids and words, if need be; return the names of all by column."""
        import lancedb.index as indexes

        made = {one.columns[0]: one.name for one in self.table.list_indices()}
        if ID not in made:
            self.table.create_index(ID, config=indexes.BTree())
        if TEXT not in made:
            # Words of all scripts, as they are: other rules would be those of one language.
            words = indexes.FTS(
                base_tokenizer="icu", stem=False, remove_stop_words=False, max_token_length=None
            )
            self.table.create_index(TEXT, config=words)
        return made

    def nearest(
        self, query: Embeddings, count: int, where: str | None = None
    ) -> list[tuple[Row, float]]:
        """Return the rows with the largest products or MaxSim with a query, and these.

        Args:
            query: `(dim,)`, of unit length; for an index of k vectors `(dim + k * dim,)`.
            count: number of rows.
            where: condition in SQL that the rows meet.
        """
        shown = self._shown()  # first: an index that was made anew may have other dimensions
        dim, several = self.about.dim, self.about.vectors > 1
        search = self.table.search(query[:dim], vector_column_name=VECTOR).distance_type("dot")
        found = self._by_vector(search, count + RERANKED * several, where)
        if not several:
            rows = found.select([*shown, DISTANCE]).to_list()
            return [(_row(one), 1 - one[DISTANCE]) for one in rows]
        first = found.select([*shown, VECTORS, DISTANCE]).to_arrow()
        scores = k_vectors.scores(query[dim:], first[VECTORS], self.about)
        best = np.argsort(-scores, kind="stable")[:count]
        rows = first.select(shown).take(best).to_pylist()
        return [(_row(row), float(scores[one])) for row, one in zip(rows, best, strict=True)]

    def matching(self, query: str, count: int, where: str | None = None) -> list[tuple[Row, float]]:
        """Return the rows with the highest BM25 for the words of a query, and that score."""
        from lancedb.query import MatchQuery

        found = self.table.search(MatchQuery(query, TEXT), query_type="fts").limit(count)
        if where is not None:
            found = found.where(where)
        rows = found.select([*self._shown(), SCORE]).to_list()
        return [(_row(one), one[SCORE]) for one in rows]

    def hybrid(
        self, query: str, vector: Embeddings, count: int, where: str | None = None
    ) -> list[tuple[Row, float]]:
        """Return the rows that rank highest by vectors and words, by reciprocal rank fusion.

        Cormack et al., 2009, "Reciprocal rank fusion outperforms Condorcet": the score of a row is
        the sum of 1 / (60 + rank) over both rankings.
        """
        depth = max(count, FUSED)
        rows: dict[str, Row] = {}
        scores: dict[str, float] = {}
        # LanceDB's own does the same, but it also reads all vectors, which takes as long again.
        for found in (self.nearest(vector, depth, where), self.matching(query, depth, where)):
            for rank, (row, _) in enumerate(found, start=1):
                rows[row.id] = row
                scores[row.id] = scores.get(row.id, 0) + 1 / (60 + rank)
        best = sorted(scores, key=lambda one: -scores[one])[:count]
        return [(rows[one], scores[one]) for one in best]

    def _by_vector(self, search: Any, count: int, where: str | None) -> Any:
        """Set how a search by vectors goes on: over the whole vectors, or over the index."""
        if where is not None:
            search = search.where(where)
        if len(self) <= EXACT_UP_TO:
            return search.limit(count).bypass_vector_index()
        precision = self._precision
        factor = max(CANDIDATES[precision], -(-FEWEST[precision] // count))
        # Vectors in few bits are so fast that all are compared: no row is missed for its cluster,
        # and none that meets a condition that few rows meet.
        return search.limit(count).nprobes(ALL).refine_factor(factor)

    @property
    def _precision(self) -> IndexPrecision:
        """In which the one vector of each text is compared first."""
        if self.about.dim % 8:  # the index of LanceDB for fewer bits takes no other dimensions
            return "float32"
        return self.about.precision if self.about.vectors == 1 else "int8"

    def _shown(self) -> list[str]:
        return [ID, TEXT, *self.kinds.known]

    @contextmanager
    def _there(self) -> Iterator[None]:
        """Say so if the table has gone.

        Raises:
            ReplacedError: if it has.
        """
        try:
            yield
        except RuntimeError as error:
            if has_index(self.folder):
                raise
            raise ReplacedError(f"{self.folder}: the index was removed; make it again") from error

    @contextmanager
    def explained(self, where: str | None) -> Iterator[None]:
        """Turn the error of a search into one line.

        Raises:
            UserError: if LanceDB cannot use the condition.
        """
        try:
            yield
        except (ValueError, RuntimeError) as error:
            if where is None:
                raise
            said = one_line(error).partition(", /")[0].removeprefix("Invalid input, ")
            said = said.partition(". Valid fields")[0].rpartition("Invalid user input: ")[2]
            columns = [f"{ID} (str)", f"{TEXT} (str)"]
            columns += [f"{name} ({kind})" for name, kind in self.kinds.items()]
            raise UserError(
                f"the filter {where!r} cannot be used: {said}; the columns are "
                f"{', '.join(columns)}, and a string has 'single quotes'"
            ) from error


def require_index_folder(folder: Path) -> None:
    """Check that a folder can hold an index, before the work begins; it need not exist.

    Raises:
        UserError: if it cannot be written, or holds something else.
    """
    require_folder(folder)
    own = (LOCK, f"{TABLE}.lance")
    others = (
        [one.name for one in folder.iterdir() if one.name not in own] if folder.exists() else []
    )
    if others:
        raise UserError(f"{folder}: holds something else ({min(others)}); name another folder")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make the folder of an index, and keep other processes from changing it within the block.

    Raises:
        UserError: if another process changes it, or the folder holds something else.
    """
    require_index_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"{folder}: another process changes this index; wait for it") from error


def require_lancedb() -> None:
    """Check that LanceDB is installed, and sqlglot, which reads filters.

    Raises:
        UserError: if one is not.
    """
    if None in map(importlib.util.find_spec, ("lancedb", "sqlglot")):
        raise UserError("an index needs LanceDB and sqlglot: pip install 'llm2comp[index]'")


def _connect(folder: Path) -> Any:
    require_lancedb()
    # Its warnings tell of clusters and the like, about which nobody can do anything.
    os.environ.setdefault("LANCEDB_LOG", "error")
    import lancedb

    # Every search sees what other processes have added since.
    return lancedb.connect(folder, read_consistency_interval=datetime.timedelta(0))


def _among(ids: Sequence[str]) -> str:
    quoted = ", ".join("'" + one.replace("'", "''") + "'" for one in ids)
    return f"{ID} in ({quoted})" if ids else "false"


def _row(found: dict[str, Any]) -> Row:
    names = (ID, TEXT, SCORE, DISTANCE)
    return Row(found[ID], found[TEXT], {name: found[name] for name in found if name not in names})
