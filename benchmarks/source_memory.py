"""Memory while a corpus of 2 GB is read and shuffled, from one file and from gzip parts.

The corpus is made by repetition of 20,000 texts, as JSON Lines. Each case reads all of it in a
process of its own, as stage 2 does: shuffled with a window of 100,000 rows, without repeated texts.
"Peak" is the most memory of the process (resident) up to the first tenth of the rows, and up to the
last row.

    python benchmarks/source_memory.py
"""

import argparse
import gzip
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import in_processes, peak_gb, report, seconds

from llm2comp.data import mixture
from llm2comp.data.drawn.distinct import Distinct
from llm2comp.data.drawn.left_out import LeftOut
from llm2comp.recipe_parts import DataSource

TEXTS, CHARACTERS = 20_000, 1_000
REPETITIONS = 100
PARTS = 10
VARIANTS = ("one file", "gzip parts")


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    case = parser.parse_args().variant
    if case:
        measure(case)
        return
    found = in_processes(__file__, VARIANTS, 1)
    columns = ["", "corpus (GB)", "peak at 10 % (GB)", "peak at 100 % (GB)", "time (s)"]
    rows = [
        [name, one["corpus"], one["tenth"], one["all"], one["seconds"]]
        for name, one in found.items()
    ]
    report("source_memory", columns, rows)


def measure(case: str) -> None:
    """Write the corpus of a case into a temporary folder, read it, and print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        source, size = {"one file": one_file, "gzip parts": gzip_parts}[case](Path(folder))
        peaks: dict[str, float] = {}
        took = seconds(lambda: read(source, peaks))
    print(json.dumps({"corpus": size / 1e9, "seconds": took, **peaks}))


def read(source: str, peaks: dict[str, float]) -> None:
    """Read all rows of a source, and note the peaks."""
    (shuffled,) = mixture.shuffled_sources([DataSource(source=source)], ["text"], 0, "fail")
    found = sum(1 for _ in Distinct().texts(watched(shuffled, peaks), source, LeftOut()))
    assert found == TEXTS


def watched(rows: Iterator[dict[str, Any]], peaks: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Yield the rows, and note the peak at a tenth of them and at the end."""
    tenth = TEXTS * REPETITIONS // 10
    for number, row in enumerate(rows, start=1):
        if number == tenth:
            peaks["tenth"] = peak_gb()
        yield row
    assert number == TEXTS * REPETITIONS
    peaks["all"] = peak_gb()


def one_file(folder: Path) -> tuple[str, int]:
    """Write the corpus as one file, and return the source and the bytes of the corpus."""
    file = folder / "corpus.jsonl"
    with file.open("wb") as stream:
        for _ in range(REPETITIONS):
            stream.write(BLOCK)
    return str(file), file.stat().st_size


def gzip_parts(folder: Path) -> tuple[str, int]:
    """Write the corpus as a folder of gzip parts, and return the source and its bytes as text."""
    for part in range(PARTS):
        with gzip.open(folder / f"part-{part}.jsonl.gz", "wb", compresslevel=1) as stream:
            for _ in range(REPETITIONS // PARTS):
                stream.write(BLOCK)
    return str(folder), len(BLOCK) * REPETITIONS


def block() -> bytes:
    """Return the texts as JSON Lines."""
    generator = random.Random(0)
    letters = "etaoinshrdlu      "
    texts = ("".join(generator.choices(letters, k=CHARACTERS)) for _ in range(TEXTS))
    return "".join(json.dumps({"text": f"a{text}z"}) + "\n" for text in texts).encode()


BLOCK = block()


if __name__ == "__main__":
    main()
