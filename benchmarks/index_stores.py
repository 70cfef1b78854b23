"""Four stores of vectors: LanceDB, usearch, FAISS and sqlite-vec, each on one core.

100,000 vectors are drawn in clusters, with a spectrum that falls as that of embeddings does. Each
case runs in a process of its own on one core: it adds the vectors in chunks of 8,192, makes its
index, and answers 300 queries one after another. Recall is that of the 10 nearest of an exact
search. Times are processor time, which is the time on a quiet core, because other work may run
beside. "Memory" is what the process has more at its end than before, with files that are mapped.

`--crash` instead kills a process with SIGKILL at random moments while it adds chunks, and counts
how many chunks that were acknowledged are still there.

    pip install lancedb usearch faiss-cpu sqlite-vec apsw
    python benchmarks/index_stores.py
    python benchmarks/index_stores.py --crash
"""

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from harness import report
from stores import STORES, Store

TEXTS, QUERIES, NEAREST, CHUNK = 100_000, 300, 10, 8_192
DIMENSIONS = (384, 576)
KILLS = 12
PACKAGES = ("lancedb", "usearch", "faiss", "sqlite_vec", "apsw")


def main() -> None:
    """Measure every case, or kill every store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crash", action="store_true")
    parser.add_argument("--only", default="", help="cases whose name begins with this")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dim", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        print(f"skipped, because {', '.join(missing)} are not installed; see the top of the file")
    elif asked.case and asked.crash:
        add_for_ever(STORES[asked.case], asked.folder, asked.dim)
    elif asked.case:
        measure(asked.case, asked.folder, asked.dim)
    elif asked.crash:
        rows = [crashes(name) for name in ("LanceDB", "usearch", "FAISS HNSW", "sqlite-vec")]
        report("index_stores_crash", ["", "kills", "opens", "chunks lost", "half chunks"], rows)
    else:
        names = [name for name in STORES if name.startswith(asked.only)]
        rows = [case(name, dim) for dim in DIMENSIONS for name in names]
        columns = ["", "dimensions", "build (s)", "recall@10", "p50 (ms)", "p95 (ms)"]
        report("index_stores", [*columns, "memory (MB)", "disk (MB)"], rows)


def vectors(dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return texts and queries of unit length: 2,000 clusters, and queries near texts."""
    generator = np.random.default_rng(dim)
    spectrum = (1 + np.arange(dim, dtype=np.float32)) ** -0.5
    turn = np.linalg.qr(generator.standard_normal((dim, dim)))[0].astype(np.float32)

    def drawn(count: int) -> np.ndarray:
        return generator.standard_normal((count, dim), dtype=np.float32) * spectrum

    centres = drawn(2_000)
    texts = centres[generator.integers(len(centres), size=TEXTS)]
    texts += 0.7 * drawn(TEXTS)
    queries = texts[generator.integers(TEXTS, size=QUERIES)] + 0.5 * drawn(QUERIES)
    for some in (texts, queries):
        some /= np.linalg.norm(some, axis=1, keepdims=True)
    return texts @ turn, queries @ turn


def case(name: str, dim: int) -> list[object]:
    """Measure a store in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--case", name, "--folder", folder, "--dim", str(dim)]
        command = [sys.executable, __file__, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        row = json.loads(done.stdout.splitlines()[-1])
    print(name, dim, row, file=sys.stderr)
    return [name, dim, *row]


def measure(name: str, folder: Path, dim: int) -> None:
    """Build a store and search in it; print the numbers of its row."""
    os.sched_setaffinity(0, {0})
    texts, queries = vectors(dim)
    exact = np.argpartition(-(queries @ texts.T), NEAREST, axis=1)[:, :NEAREST]
    np.save(folder / "texts.npy", texts)
    del texts
    texts = np.load(folder / "texts.npy", mmap_mode="r")
    gc.collect()
    store: Store = STORES[name](folder / "store", dim)
    start = time.process_time()
    for first in range(0, TEXTS, CHUNK):
        store.add(first, np.asarray(texts[first : first + CHUNK]))
    store.finish()
    build = time.process_time() - start
    del texts, store
    gc.collect()
    before = resident()
    store = STORES[name](folder / "store", dim)
    for query in queries[:20]:  # warms caches
        store.search(query, NEAREST)
    times, hits = [], 0
    for query, wanted in zip(queries, exact, strict=True):
        start = time.process_time()
        found = store.search(query, NEAREST)
        times.append(1000 * (time.process_time() - start))
        hits += len(set(found) & set(wanted.tolist()))
    p50, p95 = np.percentile(times, [50, 95])
    disk = sum(one.stat().st_size for one in (folder / "store").rglob("*") if one.is_file()) / 1e6
    recall = hits / (QUERIES * NEAREST)
    print(json.dumps([build, recall, p50, p95, resident() - before, disk]))


def resident() -> float:
    """Return the resident memory of this process, in megabytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def add_for_ever(kind: type[Store], folder: Path, dim: int) -> None:
    """Add chunks until the process is killed; print the number of each that is acknowledged."""
    store = kind(folder / "store", dim)
    generator = np.random.default_rng(0)
    chunk = generator.standard_normal((1_000, dim), dtype=np.float32)
    for number in range(10_000):
        store.add(1_000 * number, chunk)
        store.finish()
        print(number, flush=True)


def crashes(name: str) -> list[object]:
    """Kill a store at random moments, and count what is lost."""
    opened = lost = half = 0
    for seed in range(KILLS):
        with tempfile.TemporaryDirectory() as folder:
            arguments = ["--crash", "--case", name, "--folder", folder, "--dim", "64"]
            command = [sys.executable, __file__, *arguments]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as adding:
                assert adding.stdout is not None
                adding.stdout.readline()
                time.sleep(random.Random(seed).uniform(0.05, 3))
                adding.kill()
                rest = adding.stdout.read().split()
            acknowledged = 1_000 * (int(rest[-1]) + 1 if rest else 1)
            try:
                count = STORES[name](Path(folder) / "store", 64).count()
            except Exception as error:  # whatever the library raises for a broken file
                print(name, seed, repr(error)[:200], file=sys.stderr)
                lost += acknowledged // 1_000
                continue
            opened += 1
            lost += max(0, acknowledged - count) // 1_000
            half += bool(count % 1_000)
    print(name, KILLS, opened, lost, half, file=sys.stderr)
    return [name, KILLS, opened, lost, half]


if __name__ == "__main__":
    main()
