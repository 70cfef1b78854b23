"""Documents with their summaries, or with questions about them."""

from collections.abc import Iterator
from pathlib import Path

from llm2comp.data.readers.lines import Row, json_lines


def narrativeqa_pairs(folder: Path) -> Iterator[Row]:
    """Yield question and summary of a book or film. There are about 30 questions for each."""
    for row in json_lines(folder / "test.jsonl"):
        yield {"anchor": row["question"].strip(), "positive": row["passage"].strip()}


def summary_pairs(folder: Path) -> Iterator[Row]:
    """Yield summary and document of the rows that have both (XSum, Multi-LexSum)."""
    for row in json_lines(folder / "test.jsonl"):
        pair = {"anchor": row["summary"].strip(), "positive": row["document"].strip()}
        if all(pair.values()):
            yield pair
