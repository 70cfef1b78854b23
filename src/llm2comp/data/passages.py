"""Passages to compress: filtered by length and kept as token ids."""

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

TOKENIZED_AT_ONCE = 256


def load_passages(
    sources: Sequence[DataSource],
    tokenizer: PreTrainedTokenizerBase,
    rule: Passages,
    count: int,
    seed: int,
    on_bad_row: str = "fail",
) -> datasets.Dataset:
    """Draw passages from a weighted mixture.

    A passage is kept if it has at least ``rule.min_chars`` characters and at most
    ``rule.max_tokens`` tokens (the paper: 1,000 characters and under 512 tokens), or
    is cut to that with ``rule.crop``. Equal passages are kept once.

    Args:
        sources: where rows with a column ``text`` come from.
        tokenizer: a fast tokenizer; no special tokens are added.
        rule: the length filter.
        count: how many to draw; there may be fewer, which is logged.
        seed: same seed, same passages in the same order.
        on_bad_row: ``fail`` or ``skip``, see ``sources.rows``.

    Returns:
        Column ``input_ids``: the token ids of a passage, at least one.

    Raises:
        UserError: if a source cannot be read or no passage fits the rule.
    """
    seen: set[str] = set()
    streams = [
        _tokenized(_new(stream, rule.min_chars, seen), tokenizer, rule)
        for stream in mixture.streams(sources, ["text"], seed, on_bad_row)
    ]
    tokens, ends = array("i"), [0]
    draws = mixture.interleave(streams, [source.weight for source in sources], count)
    for _, ids in mixture.with_progress(draws, "passages", count):
        tokens.extend(ids)
        ends.append(len(tokens))
    names = ", ".join(source.source for source in sources)
    if len(ends) == 1:
        raise UserError(
            f"{names}: no passage has at least {rule.min_chars} characters and at most "
            f"{rule.max_tokens} tokens; lower passages.min_chars or set passages.crop"
        )
    if len(ends) <= count:
        logger.warning("%s: %d passages fit, %d were asked for", names, len(ends) - 1, count)
    # One flat array: a list of ints would take ten times the memory.
    values = pa.array(np.frombuffer(tokens, dtype=np.int32))
    column = pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), values)
    return datasets.Dataset(pa.table({"input_ids": column}))


def _new(rows: Iterator[dict[str, str]], min_chars: int, seen: set[str]) -> Iterator[str]:
    for row in rows:
        text = row["text"].strip()
        if len(text) >= min_chars and text not in seen:
            seen.add(text)
            yield text


def _tokenized(
    texts: Iterator[str], tokenizer: PreTrainedTokenizerBase, rule: Passages
) -> Iterator[list[int]]:
    while batch := list(islice(texts, TOKENIZED_AT_ONCE)):
        for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]:
            if ids and (rule.crop or len(ids) <= rule.max_tokens):
                yield ids[: rule.max_tokens]
