"""Stage 1's rows: batches of passages with similar lengths, each passage cut at a split point."""

import random
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import List, Value
from numpy.typing import NDArray

from llm2comp.data.drawn.rows import RowFiles, Summary, arrow_writer
from llm2comp.data.length_batching import group_by_length
from llm2comp.errors import UserError, counted
from llm2comp.recipe import Pretext
from llm2comp.recipe_parts import Split

IDS = List(Value("int32"))
PASSAGE = {"input_ids": IDS}
BATCH = {"input_ids": List(IDS), "split": IDS}
"""The columns of a row, which is a batch: its passages, and where each is cut."""
WRITTEN_TOGETHER = 32
"""Batches that are kept in memory before they are written."""


def write_batches(
    files: RowFiles, passages: Iterator[list[int]], stage: Pretext, seed: int, *, whole: bool
) -> Summary:
    """Write held-out passages, and the rows to train on: one per batch, in training order.

    Args:
        files: where they are written.
        passages: token ids. The first `stage.eval_passages` are held out, and the others are
            trained on, as often as the steps need.
        stage: the stage.
        seed: seed of the order and of the split points.
        whole: whether the objective reads whole passages, which are then not cut.

    Returns:
        How many passages, and how many tokens of them, are trained on.

    Raises:
        UserError: if there are too few passages.
    """
    every = files.folder / "passages.arrow"
    lengths = _write_passages(files, every, passages, stage)
    rest = datasets.Dataset.from_file(str(every))
    generator = random.Random(seed)
    order = _order(len(rest), stage.steps * stage.batch_size, generator)
    batches = group_by_length(lengths[order].tolist(), stage.batch_size)
    tokens = 0
    with files.train("passages", BATCH, WRITTEN_TOGETHER) as writer:
        for step, batch in enumerate(batches):
            texts = rest[order[batch].tolist()]["input_ids"]
            row = cut(texts, stage, step, generator, whole=whole)
            tokens += sum(map(len, row["input_ids"]))
            writer.write(row)
    every.unlink()
    return {"passages": len(order), "tokens": tokens}


def cut(
    batch: list[list[int]], stage: Pretext, step: int, generator: random.Random, *, whole: bool
) -> dict[str, Any]:
    """Return a batch's splits, and its passages up to the end of their continuations.

    Args:
        batch: token ids of its passages.
        stage: the stage; `split` is its rule.
        step: the step that trains on the batch, from 0.
        generator: source of random numbers.
        whole: whether the objective reads whole passages.
    """
    lengths, rule = [len(passage) for passage in batch], stage.split
    if whole:
        return {"input_ids": batch, "split": lengths}
    splits = split_points(lengths, rule, step, generator)
    if rule.continuation:
        pairs = zip(batch, splits, strict=True)
        batch = [passage[: split + rule.continuation] for passage, split in pairs]
    return {"input_ids": batch, "split": splits}


def split_points(
    lengths: Sequence[int], rule: Split, step: int, generator: random.Random
) -> list[int]:
    """Draw where each passage of a batch is cut into text and continuation.

    With `ramp_steps` the range widens linearly from the fixed split `start`, because compression
    is learned on a fixed split and often fails on a wide one (docs/concepts/ignition.md).

    Args:
        lengths: tokens of each passage of the batch.
        rule: the recipe's `split`.
        step: the step that trains on the batch, from 0.
        generator: source of random numbers.

    Returns:
        For each passage, the number of tokens of its text.
    """
    if rule.per == "batch":
        return [_split_point(min(lengths), rule, step, generator)] * len(lengths)
    return [_split_point(length, rule, step, generator) for length in lengths]


def _split_point(length: int, rule: Split, step: int, generator: random.Random) -> int:
    """Draw where a passage is cut; both parts have at least one token."""
    low, high = rule.low, rule.high if rule.high is not None else length - rule.margin
    if rule.start is not None and step < rule.ramp_steps:
        widened = step / rule.ramp_steps
        low = round(rule.start + widened * (low - rule.start))
        high = round(rule.start + widened * (high - rule.start))
    high = max(1, min(high, length - 1))
    return generator.randint(min(low, high), high)


def _write_passages(
    files: RowFiles, every: Path, passages: Iterator[list[int]], stage: Pretext
) -> NDArray[np.int32]:
    """Write the passages in the order in which they come, and return the lengths of those to train.

    Raises:
        UserError: if there are too few.
    """
    held_out = 0
    lengths = array("i")
    with (
        files.held_out(PASSAGE) as measured,
        arrow_writer(every, PASSAGE, 1000) as trained,
    ):
        for ids in passages:
            if held_out < stage.eval_passages:
                held_out += 1
                measured.write({"input_ids": ids})
            else:
                lengths.append(len(ids))
                trained.write({"input_ids": ids})
    if held_out < 2 or len(lengths) < stage.batch_size:
        raise UserError(
            f"pretext has {counted(held_out + len(lengths), 'passage')} after the filter, too few "
            f"for batches of {stage.batch_size} and {stage.eval_passages} held out; loosen "
            "passages.min_chars"
        )
    return np.array(lengths, dtype=np.int32)


def _order(passages: int, count: int, generator: random.Random) -> NDArray[np.int64]:
    """Return the numbers of the passages in training order, each epoch in an order of its own."""
    epochs = -(-count // passages)
    orders = [np.array(generator.sample(range(passages), passages)) for _ in range(epochs)]
    return np.concatenate(orders)[:count]
