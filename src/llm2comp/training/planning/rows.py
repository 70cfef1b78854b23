"""Some rows of a stage, drawn as the run will draw them, and how long their texts are."""

import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from llm2comp.data.drawn.rows import RowFiles, Summary, drawn_once
from llm2comp.data.pairs import write_pairs
from llm2comp.data.sentences import write_sentences
from llm2comp.recipe import Pretext, Recipe, Stage, Supervised, Unsupervised
from llm2comp.training.pretext import write_passages

ROWS = 1024
"""Rows that are drawn, if the stage has so many."""
RAREST = 2
"""Rows of the source with the smallest weight that are drawn. One pair alone has no negatives, so
it would be refused."""


def some_rows(recipe: Recipe, stage: Stage, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """Return about `ROWS` of the rows that a stage trains on, in memory.

    There are more if a source of pairs has a small weight.

    Args:
        recipe: the run.
        stage: one of its stages.
        tokenizer: of the backbone.

    Raises:
        UserError: if the rows cannot be drawn.
    """
    wanted, every = float(ROWS), stage.steps * stage.batch_size
    if isinstance(stage, Supervised):
        weights = [source.weight for source in stage.data]
        wanted = max(wanted, min(every, RAREST * sum(weights) / min(weights)))
    steps = min(stage.steps, math.ceil(wanted / stage.batch_size))
    few = stage.model_copy(update={"steps": steps})
    with tempfile.TemporaryDirectory() as folder:
        rows = drawn_once(
            Path(folder), few, recipe.seed, recipe.on_bad_row, _draw(recipe, few, tokenizer)
        )
        return DatasetDict(
            {
                name: Dataset.from_dict(part[:], features=part.features)
                for name, part in rows.train.items()
            }
        )


def _draw(
    recipe: Recipe, stage: Stage, tokenizer: PreTrainedTokenizerBase
) -> Callable[[RowFiles], Summary]:
    """Return what draws the rows of a stage, as the stage itself does."""
    seed, on_bad_row = recipe.seed, recipe.on_bad_row
    if isinstance(stage, Pretext):
        return partial(
            write_passages, tokenizer=tokenizer, stage=stage, seed=seed, on_bad_row=on_bad_row
        )
    if isinstance(stage, Unsupervised):
        return partial(write_sentences, stage=stage, seed=seed, on_bad_row=on_bad_row)
    return partial(write_pairs, stage=stage, seed=seed, on_bad_row=on_bad_row)
