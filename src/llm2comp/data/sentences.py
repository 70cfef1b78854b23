"""Single texts for unsupervised contrastive learning."""

import logging
from collections.abc import Iterator, Sequence

import datasets

from llm2comp.data import mixture
from llm2comp.errors import UserError
from llm2comp.recipe import DataSource

logger = logging.getLogger("llm2comp")


def load_sentences(
    sources: Sequence[DataSource], count: int, seed: int, on_bad_row: str = "fail"
) -> datasets.Dataset:
    """Draw distinct texts from a weighted mixture of sources.

    Args:
        sources: sources of rows with the column `text`.
        count: how many texts to draw. If there are fewer, a warning is logged.
        seed: the same seed gives the same texts in the same order.
        on_bad_row: `fail` or `skip`, as in `llm2comp.data.sources.rows`.

    Returns:
        A dataset with the column `text`.

    Raises:
        UserError: if a source cannot be read, or no source has texts.
    """
    seen: set[str] = set()
    streams = [
        _distinct_texts(rows, seen)
        for rows in mixture.shuffled_sources(sources, ["text"], seed, on_bad_row)
    ]
    draws = mixture.interleave(streams, [source.weight for source in sources], count)
    texts = [text for _, text in mixture.with_progress(draws, "sentences", count)]
    names = ", ".join(source.source for source in sources)
    if not texts:
        raise UserError(f"{names}: there are no texts; name a source that has some")
    if len(texts) < count:
        logger.warning("%s: %d texts, %d were asked for", names, len(texts), count)
    return datasets.Dataset.from_dict({"text": texts})


def _distinct_texts(rows: Iterator[dict[str, str]], seen: set[str]) -> Iterator[str]:
    """Yield the texts that are not in `seen`, and add them to it."""
    for row in rows:
        text = row["text"].strip()
        if text not in seen:
            seen.add(text)
            yield text
