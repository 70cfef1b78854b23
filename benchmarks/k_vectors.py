"""An index of k vectors per text: size, time and recall by precision, beside LanceDB's own MaxSim.

By default, the released encoder embeds 2,000 paragraphs of SQuAD and 500 of their questions. With
`--texts`, rows are drawn with seed 0: 2,000 clusters, 8 vectors of 576 dimensions per text, 20
queries that are texts with noise. Recall is that of the 10 texts with the largest MaxSim of float32
vectors, by brute force. nDCG@10 is that of the paragraph that answers. All runs on one core; times
are processor time, which is the time on a quiet core. The texts in the index are empty.

    python benchmarks/k_vectors.py
    python benchmarks/k_vectors.py --texts 100000

`--rows FILE` keeps the embeddings of the paragraphs, so that a second run does not encode them.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from harness import report

from llm2comp.inference.vector_format import to_unit_length
from llm2comp.retrieval.about import About
from llm2comp.retrieval.rows import Kinds, Row
from llm2comp.retrieval.store import Store

ENCODER, PARAGRAPHS, QUESTIONS = "smollm2-135m-llm2comp", 2_000, 500
K, DIM, CHUNK, NEAREST = 8, 576, 2_048, 10
CLUSTERS, DRAWN_QUERIES = 2_000, 20
NATIVE = {"flat": [None], "IVF_RQ": [10, 50]}
"""LanceDB's own search over a column of lists of vectors, and its factors of refinement."""
COLUMNS = [
    "",
    "texts",
    "build (s)",
    "bytes per text",
    "recall@10",
    "nDCG@10",
    "p50 (ms)",
    "p95 (ms)",
]


@dataclass
class Case:
    """Rows of an index, `(texts, dim + k * dim)`, in chunks, and queries like them.

    Attributes:
        chunks: returns the rows, the same at each call.
        queries: `(queries, dim + k * dim)`.
        answers: number of the text that answers each query; None if nothing does.
    """

    chunks: Callable[[], Iterator[np.ndarray]]
    queries: np.ndarray
    answers: np.ndarray | None = None


def main() -> None:
    """Measure every way to search."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, help="draw so many texts instead of encoding any")
    parser.add_argument("--rows", type=Path, default=Path(tempfile.gettempdir()) / "k-rows.npz")
    asked = parser.parse_args()
    os.sched_setaffinity(0, {0})
    case = drawn(asked.texts) if asked.texts else encoded(asked.rows)
    one, exact = brute_force(case)
    rows: list[list[Any]] = []
    for name, scores in (("one vector, brute force", one), ("k vectors, brute force", exact)):
        found = np.argsort(-scores, axis=1)[:, :NEAREST]
        rows.append([name, scores.shape[1], "", "", *quality(found, exact, case), "", ""])
    for vectors, precision in ((1, "int8"), (K, "float16"), (K, "int8"), (K, "binary")):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(ours(vectors, precision, case, exact, Path(folder)))
            print(*rows[-1], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for row in native(case, exact, Path(folder)):
            rows.append(row)
            print(*row, flush=True)
    report(f"k_vectors_{asked.texts or 'squad'}", COLUMNS, rows)


def encoded(file: Path) -> Case:
    """Return paragraphs of SQuAD and questions."""
    if not file.exists():
        import llm2comp
        from llm2comp.evaluation import suites
        from llm2comp.inference.embed import embed
        from llm2comp.model.multi_vector.memory_vectors import sharing_memory_vectors

        (task,) = suites.tasks(["SQuADRetrieval"])
        suites.load(task)
        data = task.dataset["default"]["test"]
        corpus = list(data["corpus"])[:PARAGRAPHS]
        place = {row["id"]: number for number, row in enumerate(corpus)}
        answers = {
            one: [place[own] for own in ids if own in place]
            for one, ids in data["relevant_docs"].items()
        }
        questions = [row for row in data["queries"] if answers[row["id"]]]
        order = np.random.default_rng(0).permutation(len(questions))[:QUESTIONS]
        questions = [questions[number] for number in order]
        encoder = sharing_memory_vectors(llm2comp.load(ENCODER), ENCODER, beside="always")
        start = time.process_time()
        texts = embed(encoder, [row["text"] for row in corpus], 32, "document")
        print(f"encoding takes {time.process_time() - start:.0f} s of processor time")
        queries = embed(encoder, [row["text"] for row in questions], 32, "query")
        gold = np.array([answers[row["id"]][0] for row in questions])
        np.savez(file, D=texts, Q=queries, gold=gold)
    kept = np.load(file)
    texts = kept["D"]
    return Case(
        lambda: (texts[i : i + CHUNK] for i in range(0, len(texts), CHUNK)), kept["Q"], kept["gold"]
    )


def drawn(count: int) -> Case:
    """Return rows whose k vectors have in common what the text says, and differ by their place."""
    spectrum = (1 + np.arange(DIM, dtype=np.float32)) ** -0.5
    seeds = np.random.default_rng(0)
    centres = seeds.standard_normal((CLUSTERS, 1, DIM), dtype=np.float32)
    places = seeds.standard_normal((1, K, DIM), dtype=np.float32)

    def rows(vectors: np.ndarray) -> np.ndarray:
        one = to_unit_length(vectors.mean(axis=1))
        return np.hstack([one, vectors.reshape(len(vectors), -1)])

    def vectors(first: int) -> np.ndarray:
        generator = np.random.default_rng(first)
        size = min(CHUNK, count - first)
        own = centres[generator.integers(CLUSTERS, size=size)]
        own = own + 0.7 * generator.standard_normal((size, 1, DIM), dtype=np.float32)
        noise = generator.standard_normal((size, K, DIM), dtype=np.float32)
        return unit((own + places + 0.7 * noise) * spectrum)

    asked = vectors(0)[:DRAWN_QUERIES]
    noise = seeds.standard_normal(asked.shape, dtype=np.float32) * spectrum
    asked = unit(asked + 0.5 * noise / np.linalg.norm(spectrum))
    return Case(lambda: (rows(vectors(first)) for first in range(0, count, CHUNK)), rows(asked))


def brute_force(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosine and the MaxSim `(queries, texts)` of all pairs."""
    one, many = [], []
    asked = case.queries[:, DIM:].reshape(-1, DIM)
    for rows in case.chunks():
        one.append(case.queries[:, :DIM] @ rows[:, :DIM].T)
        for start in range(0, len(rows), 128):
            cosines = asked @ rows[start : start + 128, DIM:].reshape(-1, DIM).T
            cosines = cosines.reshape(len(case.queries), K, -1, K)
            many.append(cosines.max(axis=3).mean(axis=1))
    return np.hstack(one), np.hstack(many)


def ours(vectors: int, precision: str, case: Case, exact: np.ndarray, folder: Path) -> list[Any]:
    """Build an index and search in it."""
    about = About(model=None, dim=DIM, precision=precision, vectors=vectors, document=[], query=[])
    width = DIM * (1 if vectors == 1 else 1 + vectors)
    store = Store.create(folder, about)
    build, total = 0.0, 0
    for chunk in case.chunks():
        rows = [Row(str(total + number), "") for number in range(len(chunk))]
        start = time.process_time()
        store.put(rows, chunk[:, :width], Kinds())
        build, total = build + time.process_time() - start, total + len(chunk)
    start = time.process_time()
    store.optimize()
    build += time.process_time() - start

    def search(query: np.ndarray) -> list[int]:
        return [int(row.id) for row, _ in store.nearest(query[:width], NEAREST)]

    name = "index, one vector" if vectors == 1 else f"index, k vectors in {precision}"
    return [name, total, build, size(folder) / total, *searched(search, case, exact)]


def native(case: Case, exact: np.ndarray, folder: Path) -> Iterator[list[Any]]:
    """Search by LanceDB's own MaxSim, over all vectors and over an index of them."""
    import lancedb
    from lancedb.index import IvfRq

    field = pa.field("vectors", pa.list_(pa.list_(pa.float16(), DIM)))
    schema = pa.schema([("id", pa.int64()), field])
    table = lancedb.connect(folder).create_table("texts", schema=schema)
    build, total = 0.0, 0
    for chunk in case.chunks():
        start = time.process_time()
        flat = pa.array(chunk[:, DIM:].astype(np.float16).reshape(-1))
        offsets = pa.array(np.arange(0, len(chunk) * K + 1, K, dtype=np.int32))
        lists = pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(flat, DIM))
        ids = pa.array(np.arange(total, total + len(chunk)))
        table.add(pa.table([ids, lists], schema=schema))
        build, total = build + time.process_time() - start, total + len(chunk)
    for kind, factors in NATIVE.items():
        if kind != "flat":
            start = time.process_time()
            table.create_index("vectors", config=IvfRq(distance_type="cosine", num_bits=1))
            build += time.process_time() - start
        for factor in factors:

            def search(query: np.ndarray, factor: int | None = factor) -> list[int]:
                asked = table.search(query[DIM:].reshape(K, DIM)).distance_type("cosine")
                asked = asked.limit(NEAREST).nprobes(1_000_000)
                asked = asked if factor is None else asked.refine_factor(factor)
                return [row["id"] for row in asked.select(["id", "_distance"]).to_list()]

            name = f"LanceDB's own, {kind}" + (f", refined {factor} times" if factor else "")
            yield [name, total, build, size(folder) / total, *searched(search, case, exact)]


def searched(
    search: Callable[[np.ndarray], Sequence[int]], case: Case, exact: np.ndarray
) -> list[Any]:
    """Return recall, nDCG, and the times of a search."""
    queries = case.queries[:DRAWN_QUERIES] if case.answers is None else case.queries
    for query in queries[:3]:
        search(query)
    found, times = [], []
    for query in queries:
        start = time.process_time()
        found.append(search(query))
        times.append(1000 * (time.process_time() - start))
    return [*quality(np.array(found), exact, case), *np.percentile(times, [50, 95])]


def quality(found: np.ndarray, exact: np.ndarray, case: Case) -> list[Any]:
    """Return recall@10 and nDCG@10 of what was found `(queries, 10)`."""
    best = np.argsort(-exact, axis=1)[:, :NEAREST].tolist()
    both = (len(set(one) & set(other)) for one, other in zip(found.tolist(), best, strict=True))
    if case.answers is None:
        return [sum(both) / found.size, ""]
    hits = found == case.answers[:, None]
    gain = (hits / np.log2(np.arange(2, NEAREST + 2))).sum(axis=1)
    return [sum(both) / found.size, 100 * gain.mean()]


def size(folder: Path) -> int:
    """Return the bytes of a folder."""
    return sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors `(..., dim)` of unit length."""
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


if __name__ == "__main__":
    main()
