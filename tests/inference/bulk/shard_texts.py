"""Write files of texts, and read the files of vectors that they become."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

Table = dict[str, tuple[str, list[float]]]
"""The text and the vector of each id."""


def write_texts(
    folder: Path, files: int, rows: int, sentences: Sequence[str], longest: int = 4
) -> None:
    """Write files of texts with the ids 0, 1, 2, ... through all of them."""
    generator = random.Random(0)
    words = " ".join(sentences).split()
    folder.mkdir(exist_ok=True)
    for file in range(files):
        lines = [
            json.dumps({"id": file * rows + row, "text": text, "other": [row]})
            for row in range(rows)
            for text in [" ".join(generator.choices(words, k=generator.randint(0, longest)))]
        ]
        (folder / f"part-{file:02}.jsonl").write_text("\n".join(lines) + "\n")


def read_vectors(folder: Path) -> Table:
    """Return what a folder of vectors holds; no id may be there twice."""
    found: Table = {}
    for file in sorted(folder.rglob("*.parquet")):
        for row in pq.read_table(file).to_pylist():
            assert row["id"] not in found
            found[row["id"]] = row["text"], row["embedding"]
    return found
