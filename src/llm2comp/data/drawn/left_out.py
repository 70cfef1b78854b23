"""Counts what is left out of the sources, by reason."""

import logging

from llm2comp.errors import counted

logger = logging.getLogger("llm2comp")

REASONS = {
    "skipped": ("bad row", "bad rows"),
    "repeated": ("row or text that is there twice", "rows or texts that are there twice"),
    "too_short": ("text that is too short", "texts that are too short"),
    "too_long": ("text that is too long", "texts that are too long"),
    "false_negatives": (
        "negative that is a positive of its query",
        "negatives that are positives of their query",
    ),
    "same_as_query": (
        "positive or negative that is the query itself",
        "positives or negatives that are the query itself",
    ),
}
"""The reasons in words, for one and for several."""


class LeftOut:
    """How many rows, texts or negatives were left out of each source, and why.

    Attributes:
        counts: by reason, which is a key of `run.jsonl`, and by the name of the source.
    """

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, int]] = {}

    def count(self, reason: str, source: str, number: int = 1) -> None:
        """Count what was left out; nothing if the number is 0."""
        if number:
            by_source = self.counts.setdefault(reason, {})
            by_source[source] = by_source.get(source, 0) + number

    def log(self) -> None:
        """Log a line for each reason and source, but for bad rows, which have a line already."""
        for reason in [one for one in REASONS if one != "skipped"]:
            for source, number in self.counts.get(reason, {}).items():
                logger.info("%s: left out %s", source, counted(number, *REASONS[reason]))
