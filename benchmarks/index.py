"""Our index with 100,000 texts: build, search and recall, without the encoder.

The vectors are those of `index_stores.py`; the texts are 60 words drawn by Zipf's law, and the
metadata is a year. Each precision runs in a process of its own on one core. Times are processor
time, which is the time on a quiet core. The filter lets half of the texts through.

    python benchmarks/index.py
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from harness import in_processes, report
from index_stores import DIMENSIONS, NEAREST, QUERIES, TEXTS, vectors

from llm2comp.retrieval.about import About
from llm2comp.retrieval.rows import Kinds, Row
from llm2comp.retrieval.store import Store

CHUNK = 2_048
WORDS = 60
HALF = "year >= 1950"
VARIANTS = [
    f"{precision} {dim}" for dim in DIMENSIONS for precision in ("float32", "int8", "binary")
]


def main() -> None:
    """Measure every precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    case = parser.parse_args().variant
    if case:
        precision, dim = case.split()
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(precision, int(dim), Path(folder))))
        return
    found = in_processes(__file__, VARIANTS, 1)
    columns = list(next(iter(found.values())))
    report("index", ["", *columns], [[name, *one.values()] for name, one in found.items()])


def measure(precision: str, dim: int, folder: Path) -> dict[str, float]:
    """Build an index, search in it, and return the numbers."""
    os.sched_setaffinity(0, {0})
    texts, queries = vectors(dim)
    generator = np.random.default_rng(0)
    words = generator.zipf(1.3, size=(TEXTS, WORDS)) % 50_000
    years = generator.integers(1900, 2000, size=TEXTS)
    products = queries @ texts.T
    about = About(model=None, dim=dim, precision=precision, document=[], query=[])
    store = Store.create(folder, about)
    start = time.process_time()
    for first in range(0, TEXTS, CHUNK):
        chunk = range(first, min(first + CHUNK, TEXTS))
        rows = [
            Row(str(one), " ".join(f"w{word}" for word in words[one]), {"year": int(years[one])})
            for one in chunk
        ]
        store.rows([row.id for row in rows])
        store.put(rows, texts[chunk.start : chunk.stop], Kinds({"year": "int"}))
    store.optimize()
    build = time.process_time() - start
    found = {"build (s)": build}
    said = [" ".join(f"w{word}" for word in words[one][:6]) for one in range(QUERIES)]

    def recall(ids: list[list[int]], among: np.ndarray) -> float:
        masked = np.where(among, products, -2)
        exact = np.argpartition(-masked, NEAREST, axis=1)[:, :NEAREST]
        both = (len(set(one) & set(best)) for one, best in zip(ids, exact.tolist(), strict=True))
        return sum(both) / exact.size

    cases: dict[str, Callable[[int], list]] = {
        "vector": lambda i: store.nearest(queries[i], NEAREST),
        "filter": lambda i: store.nearest(queries[i], NEAREST, HALF),
        "text": lambda i: store.matching(said[i], NEAREST),
        "hybrid": lambda i: store.hybrid(said[i], queries[i], NEAREST),
    }
    for name, search in cases.items():
        for warm in range(20):
            search(warm)
        times, ids = [], []
        for number in range(QUERIES):
            start = time.process_time()
            hits = search(number)
            times.append(1000 * (time.process_time() - start))
            ids.append([int(row.id) for row, _ in hits])
        if name in ("vector", "filter"):
            found[f"{name}: recall@10"] = recall(ids, (years >= 1950) | (name == "vector"))
        found[f"{name}: p50 (ms)"], found[f"{name}: p95 (ms)"] = np.percentile(times, [50, 95])
    found["disk (MB)"] = sum(one.stat().st_size for one in folder.rglob("*") if one.is_file()) / 1e6
    return found


if __name__ == "__main__":
    main()
