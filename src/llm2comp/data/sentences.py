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
    """Draw texts from a weighted mixture, each once.

    Args:
        sources: where rows with a column ``text`` come from.
        count: how many to draw; there may be fewer, which is logged.
        seed: same seed, same texts in the same order.
        on_bad_row: ``fail`` or ``skip``, see ``sources.rows``.

    Returns:
        Column ``text``.

    Raises:
        UserError: if a source cannot be read or has no rows.
    """
    seen: set[str] = set()
    streams = [_new(s, seen) for s in mixture.streams(sources, ["text"], seed, on_bad_row)]
    draws = mixture.interleave(streams, [source.weight for source in sources], count)
    texts = [text for _, text in mixture.with_progress(draws, "sentences", count)]
    names = ", ".join(source.source for source in sources)
    if not texts:
        raise UserError(f"{names}: there are no texts; name a source that has some")
    if len(texts) < count:
        logger.warning("%s: %d texts, %d were asked for", names, len(texts), count)
    return datasets.Dataset.from_dict({"text": texts})


def _new(rows: Iterator[dict[str, str]], seen: set[str]) -> Iterator[str]:
    for row in rows:
        text = row["text"].strip()
        if text not in seen:
            seen.add(text)
            yield text
