"""The negatives of a round: mined once, written beside the rows, and read from there."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets, load_from_disk
from sentence_transformers import SentenceTransformer

from llm2comp.data.pairs import REQUIRED
from llm2comp.errors import UserError
from llm2comp.inference.mining.miner import Mined, mine, text_key
from llm2comp.recipe_parts import Mining
from llm2comp.utils.checksums import require_unchanged, write_checksums
from llm2comp.utils.files import atomic_folder

Prompts = Mapping[str, str]
"""What is put before the texts of a column in training."""
ABOUT = ("found", "scores")
"""Columns that say of a pair how many negatives were found, and how positive and negatives score.
"""


def mine_columns(
    data: DatasetDict,
    model: SentenceTransformer,
    mining: Mining,
    folder: Path,
    *,
    prompts: Mapping[str, Prompts],
    seed: str,
) -> None:
    """Mine negatives for the sources of plain pairs, and write them.

    The positives of a source are the texts that are searched. A pair for which too few negatives
    are found gets other positives of its source, drawn by the seed: they are negatives like those
    of its batch, and no pair is lost.

    Args:
        data: the rows of each source.
        model: the encoder so far.
        mining: which texts are negatives.
        folder: where negatives are written.
        prompts: by the name of a source, what is put before its texts.
        seed: of the drawn negatives.

    Raises:
        UserError: if a query has no text that is not its own positive.
    """
    with atomic_folder(folder) as partial:
        for place, (name, part) in enumerate(_plain(data).items()):
            columns = _mined(part, model, mining, prompts.get(name, {}), f"{seed}/{place}")
            Dataset.from_dict(columns).save_to_disk(str(partial / str(place)))
        write_checksums(partial)


def with_columns(data: DatasetDict, folder: Path) -> tuple[DatasetDict, dict[str, Any]]:
    """Return rows with their mined negatives, and what was mined in numbers.

    A source that has negatives or scores stays as it is.

    Args:
        data: the rows of each source.
        folder: that `mine_columns` wrote.

    Raises:
        UserError: if a file is damaged.
    """
    require_unchanged(folder)
    rows, numbers = dict(data), {}
    for place, (name, part) in enumerate(_plain(data).items()):
        mined = load_from_disk(str(folder / str(place)))
        numbers[name] = _numbers(mined)
        rows[name] = concatenate_datasets([part, mined.remove_columns(list(ABOUT))], axis=1)
    return DatasetDict(rows), numbers


def _plain(data: DatasetDict) -> dict[str, Dataset]:
    """Return the sources without negatives and scores."""
    return {name: part for name, part in data.items() if set(part.column_names) == set(REQUIRED)}


def _mined(
    pairs: Dataset, model: SentenceTransformer, mining: Mining, prompts: Prompts, seed: str
) -> dict[str, list[Any]]:
    """Return the columns that are added to pairs: negatives, how many were found, and scores."""
    anchors, positives = list(pairs["anchor"]), list(pairs["positive"])
    found = mine(
        model,
        zip(anchors, positives, strict=True),
        mining,
        prompts=(prompts.get("anchor", ""), prompts.get("positive", "")),
    )
    by_pair = {(text_key(row.anchor), text_key(row.positive)): row for row in found}
    own: dict[bytes, set[bytes]] = {}
    for anchor, positive in by_pair:
        own.setdefault(anchor, {anchor}).add(positive)
    rows = [by_pair[text_key(a), text_key(p)] for a, p in zip(anchors, positives, strict=True)]
    generator = random.Random(seed)
    complete = [
        [*row.negatives, *_others(row, positives, own[text_key(row.anchor)], mining, generator)]
        for row in rows
    ]
    columns: dict[str, list[Any]] = {
        f"negative_{number + 1}": [texts[number] for texts in complete]
        for number in range(mining.negatives)
    }
    return columns | {
        "found": [len(row.negatives) for row in rows],
        "scores": [row.scores for row in rows],
    }


def _others(
    row: Mined, texts: Sequence[str], own: set[bytes], mining: Mining, generator: random.Random
) -> list[str]:
    """Return as many texts as a row lacks: neither its positives nor its negatives.

    Raises:
        UserError: if there are not so many.
    """
    lacking = mining.negatives - len(row.negatives)
    taken = own | {text_key(text) for text in row.negatives}
    start = generator.randrange(len(texts))
    rotated = (texts[(start + place) % len(texts)] for place in range(len(texts)))
    drawn: dict[bytes, str] = {}
    for text in rotated:
        if len(drawn) == lacking:
            break
        if text_key(text) not in taken:
            drawn[text_key(text)] = text
    if len(drawn) < lacking:
        raise UserError(
            f"mining asks for {mining.negatives} negatives, and for the query {row.anchor[:60]!r} "
            f"there are only {len(row.negatives) + len(drawn)} texts that are not its own "
            "positives; give more pairs, or ask for fewer negatives"
        )
    return list(drawn.values())


def _numbers(mined: Dataset) -> dict[str, Any]:
    """Return how many negatives were found, and the mean scores."""
    scores = [row for row in mined["scores"] if row]
    means = {}
    if scores:
        means = {
            "positive_score": round(float(np.mean([row[0] for row in scores])), 4),
            "negative_score": round(float(np.mean([s for row in scores for s in row[1:]])), 4),
        }
    return {"pairs": len(mined), "negatives": sum(mined["found"])} | means
