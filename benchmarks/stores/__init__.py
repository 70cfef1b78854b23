"""The stores that `index_stores.py` compares, each behind the same four functions."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np


class Store(Protocol):
    """A folder with vectors of unit length, which have numbers.

    Args:
        folder: of the store; it may exist.
        dim: of the vectors.
    """

    def __init__(self, folder: Path, dim: int) -> None: ...

    def add(self, first: int, vectors: np.ndarray) -> None:
        """Add vectors, numbered from `first`, as safely as the store can."""

    def finish(self) -> None:
        """Make the index, if it is not made while adding, and write it."""

    def search(self, query: np.ndarray, count: int) -> list[int]:
        """Return the numbers of the nearest vectors."""

    def count(self) -> int:
        """Return the number of vectors, and look into each."""


def make_faiss(description: str) -> type[Store]:
    """Return a store of FAISS's index factory."""

    class Faiss:
        def __init__(self, folder: Path, dim: int) -> None:
            import faiss

            faiss.omp_set_num_threads(1)
            self.faiss, self.file = faiss, folder / "index.faiss"
            folder.mkdir(exist_ok=True)
            if self.file.exists():
                self.index = faiss.read_index(str(self.file))
            else:
                self.index = faiss.index_factory(dim, description, faiss.METRIC_INNER_PRODUCT)
            inner = faiss.try_extract_index_ivf(self.index)
            if inner is not None:
                inner.nprobe = 32
            if isinstance(inner := faiss.downcast_index(self.index), faiss.IndexHNSW):
                inner.hnsw.efConstruction, inner.hnsw.efSearch = 100, 200
            self.waiting: list[np.ndarray] = []

        def add(self, first: int, vectors: np.ndarray) -> None:
            self.waiting.append(vectors)

        def finish(self) -> None:
            whole = np.concatenate(self.waiting)
            self.waiting = []
            if not self.index.is_trained:
                self.index.train(whole)
            self.index.add(whole)
            self.faiss.write_index(self.index, str(self.file))

        def search(self, query: np.ndarray, count: int) -> list[int]:
            return self.index.search(query[None], count)[1][0].tolist()

        def count(self) -> int:
            return self.index.ntotal

    return Faiss


class Usearch:
    """Usearch's HNSW graph over int8 or float16 numbers."""

    dtype = "f16"

    def __init__(self, folder: Path, dim: int) -> None:
        from usearch.index import Index

        folder.mkdir(exist_ok=True)
        self.file = folder / "index.usearch"
        self.index = Index(ndim=dim, metric="ip", dtype=self.dtype, expansion_search=200)
        if self.file.exists():
            self.index.load(str(self.file))

    def add(self, first: int, vectors: np.ndarray) -> None:
        self.index.add(np.arange(first, first + len(vectors)), vectors, threads=1)

    def finish(self) -> None:
        self.index.save(str(self.file))

    def search(self, query: np.ndarray, count: int) -> list[int]:
        return self.index.search(query, count, threads=1).keys.tolist()

    def count(self) -> int:
        return len(self.index)


class UsearchInt8(Usearch):
    """The same over int8."""

    dtype = "i8"


def make_lance(index: Callable[[], object] | None, **asked: int) -> type[Store]:
    """Return a store of LanceDB with an index and settings of its search."""

    class Lance:
        def __init__(self, folder: Path, dim: int) -> None:
            import lancedb
            import pyarrow as pa

            self.pa, self.dim = pa, dim
            database = lancedb.connect(folder)
            schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), dim))])
            self.table = database.create_table("texts", schema=schema, exist_ok=True)

        def add(self, first: int, vectors: np.ndarray) -> None:
            numbers = self.pa.array(np.arange(first, first + len(vectors)))
            column = self.pa.FixedSizeListArray.from_arrays(vectors.ravel(), self.dim)
            self.table.add(self.pa.table({"id": numbers, "vector": column}))

        def finish(self) -> None:
            if index is not None:
                self.table.create_index("vector", config=index())

        def search(self, query: np.ndarray, count: int) -> list[int]:
            found = self.table.search(query).distance_type("dot").limit(count).select(["id"])
            for name, value in asked.items():
                found = getattr(found, name)(value)
            return found.to_arrow()["id"].to_pylist()

        def count(self) -> int:
            return self.table.to_arrow().num_rows

    return Lance


def _lance_index(kind: str, **options: object) -> Callable[[], object]:
    def make() -> object:
        import lancedb.index

        return getattr(lancedb.index, kind)(distance_type="dot", **options)

    return make


class SqliteVec:
    """sqlite-vec's scan, by apsw, since Python's own sqlite3 often loads no extensions."""

    kind, column, cast = "float", "vector", "?"
    candidates = 0

    def __init__(self, folder: Path, dim: int) -> None:
        import apsw
        import sqlite_vec

        folder.mkdir(exist_ok=True)
        self.db = apsw.Connection(str(folder / "index.db"))
        self.db.enable_load_extension(True)
        self.db.load_extension(sqlite_vec.loadable_path())
        self.db.execute("pragma journal_mode=wal")
        metric = "" if self.kind == "bit" else " distance_metric=cosine"
        self.db.execute(
            f"create virtual table if not exists near using vec0(vector {self.kind}[{dim}]{metric})"
        )
        self.db.execute("create table if not exists whole (id integer primary key, vector blob)")

    def add(self, first: int, vectors: np.ndarray) -> None:
        rows = [(first + place, vector.tobytes()) for place, vector in enumerate(vectors)]
        with self.db:
            self.db.executemany(f"insert into near(rowid, vector) values (?, {self.cast})", rows)
            if self.candidates:
                self.db.executemany("insert into whole values (?, ?)", rows)

    def finish(self) -> None:
        pass

    def search(self, query: np.ndarray, count: int) -> list[int]:
        raw = query.tobytes()
        sql = f"select rowid from near where vector match {self.cast} and k = ?"
        if not self.candidates:
            return [row[0] for row in self.db.execute(sql, (raw, count))]
        rescored = (
            f"select id from whole where id in ({sql}) "
            "order by vec_distance_cosine(vector, ?) limit ?"
        )
        found = self.db.execute(rescored, (raw, self.candidates, raw, count))
        return [row[0] for row in found]

    def count(self) -> int:
        return self.db.execute("select count(*) from near").fetchone()[0]


class SqliteVecInt8(SqliteVec):
    """The same over int8, whose best are compared with floats."""

    kind, cast, candidates = "int8", "vec_quantize_int8(?, 'unit')", 40


class SqliteVecBinary(SqliteVec):
    """The same over bits, whose best are compared with floats."""

    kind, cast, candidates = "bit", "vec_quantize_binary(?)", 200


STORES: dict[str, type[Store]] = {
    "LanceDB": make_lance(None),
    "LanceDB IVF_FLAT": make_lance(_lance_index("IvfFlat"), nprobes=20),
    "LanceDB IVF_SQ": make_lance(_lance_index("IvfSq"), nprobes=20, refine_factor=4),
    "LanceDB IVF_RQ": make_lance(_lance_index("IvfRq"), nprobes=20, refine_factor=10),
    "LanceDB IVF_RQ, 8 bits": make_lance(
        _lance_index("IvfRq", num_bits=8), nprobes=1000, refine_factor=20
    ),
    "LanceDB IVF_HNSW_SQ": make_lance(_lance_index("HnswSq"), nprobes=20, refine_factor=4),
    "usearch": Usearch,
    "usearch int8": UsearchInt8,
    "FAISS HNSW": make_faiss("HNSW32"),
    "FAISS IVF": make_faiss("IVF512,Flat"),
    "FAISS HNSW SQ8": make_faiss("HNSW32_SQ8"),
    "sqlite-vec": SqliteVec,
    "sqlite-vec int8": SqliteVecInt8,
    "sqlite-vec binary": SqliteVecBinary,
}
