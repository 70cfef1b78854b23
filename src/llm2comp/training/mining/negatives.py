"""The negatives of a round: mined once, written beside the rows, and read from there."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, List, Value, concatenate_datasets
from sentence_transformers import SentenceTransformer

from llm2comp.data.drawn.distinct import digest, number
from llm2comp.data.drawn.pair_file import POSITIVES, WRITTEN_TOGETHER
from llm2comp.data.drawn.rows import arrow_writer
from llm2comp.data.pairs import dataset_name
from llm2comp.data.sources import NEGATIVE, SCORE
from llm2comp.inference.mining.miner import Mined, Pair, mine
from llm2comp.recipe_parts import Mining
from llm2comp.training.losses.distillation import LABEL
from llm2comp.utils.checksums import require_unchanged, write_checksums
from llm2comp.utils.files import atomic_folder

Prompts = Mapping[str, str]
"""What is put before the texts of a column in training."""

SCORES = "scores"
"""Column with the scores of the positive and of each mined negative."""
MINED = {NEGATIVE: List(Value("string")), SCORES: List(Value("float32"))}


def mine_columns(
    data: DatasetDict,
    model: SentenceTransformer,
    mining: Mining,
    folder: Path,
    prompts: Mapping[str, Prompts],
) -> None:
    """Mine negatives for the sources of plain pairs, and write them.

    The positives of a source's drawn rows are the texts that are searched. A pair may get fewer
    negatives than are asked for, or none; it then has those of its batch.

    Args:
        data: the rows of each source, as `llm2comp.data.drawn.pair_file` writes them.
        model: the encoder so far.
        mining: which texts are negatives.
        folder: where negatives are written.
        prompts: by the name of a source, what is put before its texts.
    """
    with atomic_folder(folder) as partial:
        for place, (name, part) in enumerate(_plain(data).items()):
            with arrow_writer(partial / _file(place), MINED, WRITTEN_TOGETHER) as writer:
                for row in _mined(part, model, mining, prompts.get(name, {})):
                    writer.write({NEGATIVE: row.negatives, SCORES: row.scores})
        write_checksums(partial)


def with_columns(data: DatasetDict, folder: Path) -> tuple[DatasetDict, dict[str, Any]]:
    """Return rows with their mined negatives, and what was mined in numbers, by source.

    A source that has negatives, scores or a teacher stays as it is.

    Args:
        data: the rows of each source.
        folder: that `mine_columns` wrote.

    Raises:
        UserError: if a file is damaged.
    """
    require_unchanged(folder)
    rows, numbers = dict(data), {}
    for place, (name, part) in enumerate(_plain(data).items()):
        mined = Dataset.from_file(str(folder / _file(place)))
        numbers[dataset_name(name)] = _numbers(mined)
        rows[name] = concatenate_datasets([part, mined.remove_columns(SCORES)], axis=1)
    return DatasetDict(rows), numbers


def _file(place: int) -> str:
    return f"{place}.arrow"


def _plain(data: DatasetDict) -> dict[str, Dataset]:
    """Return the sources without negatives, scores and a teacher."""
    return {
        name: part
        for name, part in data.items()
        if not {NEGATIVE, SCORE, LABEL} & set(part.column_names)
    }


def _mined(
    pairs: Dataset, model: SentenceTransformer, mining: Mining, prompts: Prompts
) -> list[Mined]:
    """Return what was found for each row."""
    anchors, positives = list(pairs["anchor"]), list(pairs["positive"])
    found = mine(
        model,
        zip(anchors, positives, strict=True),
        mining,
        answers=_answers(pairs),
        prompts=(prompts.get("anchor", ""), prompts.get("positive", "")),
    )
    by_pair = {digest(row.anchor, row.positive): row for row in found}
    return [by_pair[digest(*pair)] for pair in zip(anchors, positives, strict=True)]


def _answers(pairs: Dataset) -> Iterator[Pair]:
    """Yield each anchor with its known positives that are positives of some row."""
    if POSITIVES not in pairs.column_names:
        return
    texts = {number(text): text for text in pairs["positive"]}
    for anchor, known in zip(pairs["anchor"], pairs[POSITIVES], strict=True):
        for one in known:
            if one in texts:
                yield anchor, texts[one]


def _numbers(mined: Dataset) -> dict[str, Any]:
    """Return how many negatives were found, and the mean scores."""
    scores = [row for row in mined[SCORES] if row]
    numbers: dict[str, Any] = {
        "pairs": len(mined),
        "without": len(mined) - len(scores),
        "negatives": sum(len(row) - 1 for row in scores),
    }
    if scores:
        negative = [score for row in scores for score in row[1:]]
        numbers["positive_score"] = round(float(np.mean([row[0] for row in scores])), 4)
        numbers["negative_score"] = round(float(np.mean(negative)), 4)
    return numbers
