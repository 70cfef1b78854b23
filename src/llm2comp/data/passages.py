"""Passages to compress in pretraining, filtered by length and stored as token ids."""

import logging
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice

import datasets
import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from llm2comp.data import mixture
from llm2comp.errors import UserError
from llm2comp.recipe import DataSource, Passages

logger = logging.getLogger("llm2comp")

TOKENIZE_BATCH = 256
"""Texts that are given to the tokenizer at once."""


def load_passages(
    sources: Sequence[DataSource],
    tokenizer: PreTrainedTokenizerBase,
    limits: Passages,
    count: int,
    seed: int,
    on_bad_row: str = "fail",
) -> datasets.Dataset:
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

    Returns:
        A dataset with the column `input_ids`: the token ids of each passage, at least two.

    Raises:
        UserError: if a source cannot be read, or no passage is within the limits.
    """
    seen: set[str] = set()
    streams = [
        _tokenize(_distinct_texts(rows, limits.min_chars, seen), tokenizer, limits)
        for rows in mixture.shuffled_sources(sources, ["text"], seed, on_bad_row)
    ]
    # One flat array and the place where each passage ends: lists of integers would take ten times
    # the memory.
    tokens, ends = array("i"), [0]
    draws = mixture.interleave(streams, [source.weight for source in sources], count)
    for _, ids in mixture.with_progress(draws, "passages", count):
        tokens.extend(ids)
        ends.append(len(tokens))
    passages = len(ends) - 1
    names = ", ".join(source.source for source in sources)
    if not passages:
        raise UserError(
            f"{names}: no passage has at least {limits.min_chars} characters and at most "
            f"{limits.max_tokens} tokens; lower passages.min_chars or set passages.crop"
        )
    if passages < count:
        logger.warning("%s: %d passages fit, %d were asked for", names, passages, count)
    values = pa.array(np.frombuffer(tokens, dtype=np.int32))
    column = pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), values)
    return datasets.Dataset(pa.table({"input_ids": column}))


def _distinct_texts(
    rows: Iterator[dict[str, str]], min_chars: int, seen: set[str]
) -> Iterator[str]:
    """Yield the texts that are long enough and not in `seen`, and add them to it."""
    for row in rows:
        text = row["text"].strip()
        if len(text) >= min_chars and text not in seen:
            seen.add(text)
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
