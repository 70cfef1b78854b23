"""Add chunks of rows to an index until the process is killed; print each that is acknowledged."""

import sys
from pathlib import Path

import numpy as np

from llm2comp.retrieval.rows import Kinds, Row
from llm2comp.retrieval.store import Store

SIZE, DIM = 50, 8


def chunk(number: int, k: int = 1) -> tuple[list[Row], np.ndarray]:
    """Return rows with one vector each, and k more after it if there are several."""
    shape = (SIZE, 1 if k == 1 else 1 + k, DIM)
    vectors = np.random.default_rng(number).standard_normal(shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    vectors = vectors.reshape(SIZE, -1)
    ids = range(number * SIZE, (number + 1) * SIZE)
    return [Row(str(one), f"text of {one}", {"chunk": number}) for one in ids], vectors


def main() -> None:
    store = Store(Path(sys.argv[1]))
    first = int(sys.argv[2])
    for number in range(first, first + 10_000):
        store.put(*chunk(number, store.about.vectors), Kinds({"chunk": "int"}))
        if number % 5 == 4:
            store.optimize()
        print(number, flush=True)


if __name__ == "__main__":
    main()
