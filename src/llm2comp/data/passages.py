"""Passages to compress in pretraining, filtered by length and given as token ids."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice

from transformers import PreTrainedTokenizerBase

from llm2comp.data import mixture
from llm2comp.data.drawn.distinct import Distinct
from llm2comp.data.drawn.left_out import LeftOut
from llm2comp.errors import UserError, counted
from llm2comp.recipe_parts import DataSource, Passages

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
    left_out: LeftOut | None = None,
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
        left_out: if given, counts what is left out of each source.

    Yields:
        The token ids of each passage, at least two.

    Raises:
        UserError: if a source cannot be read, or no passage is within the limits.
    """
    distinct = Distinct()
    left_out = LeftOut() if left_out is None else left_out
    shuffled = mixture.shuffled_sources(sources, ["text"], seed, on_bad_row, left_out=left_out)
    streams = [
        _tokenize(
            distinct.texts(rows, source.source, left_out, limits.min_chars),
            tokenizer,
            limits,
            partial(left_out.count, "too_long", source.source),
        )
        for source, rows in zip(sources, shuffled, strict=True)
    ]
    passages = 0
    for _, ids in mixture.draw(sources, streams, "passages", count):
        passages += 1
        yield ids
    left_out.log()
    names = ", ".join(source.source for source in sources)
    if not passages:
        raise UserError(
            f"{names}: no passage has at least {counted(limits.min_chars, 'character')} and at "
            f"most {counted(limits.max_tokens, 'token')}; lower passages.min_chars or set "
            "passages.crop"
        )
    if passages < count:
        fit = counted(passages, "passage fits", "passages fit")
        logger.warning("%s: %s, %d were asked for", names, fit, count)


def _tokenize(
    texts: Iterator[str],
    tokenizer: PreTrainedTokenizerBase,
    limits: Passages,
    too_long: Callable[[], None],
) -> Iterator[list[int]]:
    while batch := list(islice(texts, TOKENIZE_BATCH)):
        for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]:
            kept = ids[: limits.max_tokens]
            if len(kept) < len(ids) and not limits.crop:
                too_long()
            elif len(kept) > 1:  # a passage of one token cannot be cut into text and continuation
                yield kept
