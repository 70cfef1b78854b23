"""Passages to compress in pretraining, filtered by length and given as token ids."""

import logging
from collections.abc import Iterator, Sequence
from itertools import islice

from transformers import PreTrainedTokenizerBase

from llm2comp.data import mixture
from llm2comp.data.drawn.distinct import Distinct
from llm2comp.errors import UserError
from llm2comp.recipe import DataSource
from llm2comp.recipe_parts import Passages

logger = logging.getLogger("llm2comp")

TOKENIZE_BATCH = 256
"""Texts that are given to the tokenizer at once."""


def draw_passages(
    sources: Sequence[DataSource],
    tokenizer: PreTrainedTokenizerBase,
    limits: Passages,
    count: int,
    seed: int,
    on_bad_row: str = "fail",
    skipped: dict[str, int] | None = None,
) -> Iterator[list[int]]:
    """Draw distinct passages from a weighted mixture of sources.

    A passage is taken if it has at least `limits.min_chars` characters and at most
    `limits.max_tokens` tokens (paper: 1,000 characters and under 512 tokens). With `limits.crop`,
    passages with more tokens are cut to `limits.max_tokens`.

    Args:
        sources: sources of rows with the column `text`.
        tokenizer: a fast tokenizer. No special tokens are added.
        limits: the limits of length.
        count: how many passages to draw. If there are fewer, a warning is logged.
        seed: the same seed gives the same passages in the same order.
        on_bad_row: `fail` or `skip`, as in `llm2comp.data.sources.rows`.
        skipped: if given, gets the number of rows that were skipped, by source.

    Yields:
        The token ids of each passage, at least two.

    Raises:
        UserError: if a source cannot be read, or no passage is within the limits.
    """
    distinct = Distinct()
    streams = [
        _tokenize(_distinct_texts(rows, limits.min_chars, distinct), tokenizer, limits)
        for rows in mixture.shuffled_sources(sources, ["text"], seed, on_bad_row, skipped=skipped)
    ]
    draws = mixture.interleave(streams, [source.weight for source in sources], count)
    passages = 0
    for _, ids in mixture.with_progress(draws, "passages", count):
        passages += 1
        yield ids
    names = ", ".join(source.source for source in sources)
    if not passages:
        raise UserError(
            f"{names}: no passage has at least {limits.min_chars} characters and at most "
            f"{limits.max_tokens} tokens; lower passages.min_chars or set passages.crop"
        )
    if passages < count:
        logger.warning("%s: %d passages fit, %d were asked for", names, passages, count)


def _distinct_texts(
    rows: Iterator[dict[str, str]], min_chars: int, distinct: Distinct
) -> Iterator[str]:
    """Yield the texts that are long enough and new."""
    for row in rows:
        text = row["text"].strip()
        if len(text) >= min_chars and distinct.is_new(text):
            yield text


def _tokenize(
    texts: Iterator[str], tokenizer: PreTrainedTokenizerBase, limits: Passages
) -> Iterator[list[int]]:
    while batch := list(islice(texts, TOKENIZE_BATCH)):
        for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]:
            kept = ids[: limits.max_tokens]
            # A passage of one token cannot be cut into text and continuation.
            if len(kept) > 1 and (limits.crop or len(kept) == len(ids)):
                yield kept
