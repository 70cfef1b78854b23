"""Drawing the rows of stages 1 and 3 from local files, and starting again with what was drawn.

128,000 passages of 1,000 characters and more, and 1,000,000 triples of anchor, positive and
negative. Each in a process of its own. A word is a token here, so that drawing is measured and not
the tokenizer. "Memory" is what the process allocated at its peak, without
the pages of mapped files, which the system takes back when it needs them.

    python benchmarks/drawn_rows.py
"""

import argparse
import json
import random
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

from harness import in_processes, report, seconds

from llm2comp.data.drawn.batches import write_batches
from llm2comp.data.drawn.rows import RowFiles, Rows, Summary, drawn_once
from llm2comp.data.pairs import write_pairs
from llm2comp.data.passages import draw_passages
from llm2comp.recipe import Pretext, Stage, Supervised
from llm2comp.recipe_parts import DataSource, Passages

PASSAGES, TRIPLES = 128_000, 1_000_000
WORDS = 300
"""Words of a passage; a text of a triple has a tenth."""
VARIANTS = ("passages", "triples")


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    case = parser.parse_args().variant
    if case:
        measure(case)
        return
    found = in_processes(__file__, VARIANTS, 1)
    columns = ["", "rows", "drawing (s)", "memory (GB)", "starting again (s)", "on disk (GB)"]
    rows = [
        [name, int(one["rows"]), one["drawing"], one["memory"], one["again"], one["disk"]]
        for name, one in found.items()
    ]
    report("drawn_rows", columns, rows)


def measure(case: str) -> None:
    """Draw the rows of a case in a temporary folder, open them again, and print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        stage, draw = {"passages": passages, "triples": triples}[case](Path(folder))
        work = Path(folder) / "work"
        once: partial[Rows] = partial(drawn_once, work, stage, 0, "fail", draw)
        before = anonymous_gb()
        peak = Peak()
        drawing = seconds(once)
        memory = peak.stop() - before
        again = seconds(once)
        disk = sum(file.stat().st_size for file in work.rglob("*.arrow")) / 1e9
    count = stage.steps * stage.batch_size
    print(json.dumps(dict(rows=count, drawing=drawing, memory=memory, again=again, disk=disk)))


def passages(folder: Path) -> tuple[Stage, "partial[Summary]"]:
    """Write passages, and return the stage and what draws its rows."""
    file = folder / "texts.txt"
    with file.open("w") as stream:
        stream.writelines(f"{words(WORDS)}\n" for _ in range(PASSAGES + 64))
    stage = Pretext(
        data=[DataSource(source=str(file))],
        passages=Passages(crop=True),
        steps=PASSAGES // 8,
        batch_size=8,
        learning_rate=1e-4,
    )
    return stage, partial(draw_batches, stage=stage)


def draw_batches(files: RowFiles, stage: Pretext) -> Summary:
    """Draw the rows of stage 1."""
    drawn = draw_passages(stage.data, words_as_tokens, stage.passages, PASSAGES + 64, 0)
    return write_batches(files, drawn, stage, 0, whole=False)


def triples(folder: Path) -> tuple[Stage, "partial[Summary]"]:
    """Write triples, and return the stage and what draws its rows."""
    file = folder / "triples.jsonl"
    with file.open("w") as stream:
        for _ in range(TRIPLES):
            row = {c: words(WORDS // 10) for c in ("anchor", "positive", "negative")}
            stream.write(json.dumps(row) + "\n")
    stage = Supervised(
        data=[DataSource(source=str(file))],
        steps=TRIPLES // 64,
        batch_size=64,
        learning_rate=1e-4,
        eval_pairs=0,
    )
    return stage, partial(write_pairs, stage=stage, seed=0, on_bad_row="fail")


GENERATOR = random.Random(0)
VOCABULARY = ["".join(GENERATOR.choices("etaoinshrdlu", k=6)) for _ in range(20_000)]


def words(count: int) -> str:
    """Return random words."""
    return " ".join(GENERATOR.choices(VOCABULARY, k=count))


NUMBERS = {word: number for number, word in enumerate(VOCABULARY)}


def words_as_tokens(texts: list[str], **_: bool) -> dict[str, list[list[int]]]:
    """Return the number of each word, in the place of a tokenizer."""
    return {"input_ids": [[NUMBERS[word] for word in text.split()] for text in texts]}


class Peak:
    """Watches the memory of this process in a thread."""

    def __init__(self) -> None:
        self.highest = 0.0
        self._running = True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self._running:
            self.highest = max(self.highest, anonymous_gb())
            time.sleep(0.02)

    def stop(self) -> float:
        """Return the peak in GB."""
        self._running = False
        self._thread.join()
        return self.highest


def anonymous_gb() -> float:
    """Return what the process has allocated, without the pages of mapped files (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1e6


if __name__ == "__main__":
    main()
