"""Counts what is left out of the sources, by reason."""

import logging

logger = logging.getLogger("llm2comp")

REASONS = {
    "skipped": "bad rows",
    "repeated": "rows or texts that are there twice",
    "too_short": "texts that are too short",
    "too_long": "texts that are too long",
    "false_negatives": "negatives that are positives of their query",
    "same_as_query": "positives or negatives that are the query itself",
}
"""The reasons in words."""


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
                logger.info("%s: left out %s %s", source, f"{number:,}", REASONS[reason])
