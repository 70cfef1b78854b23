"""Stage 3 (SCL): train on pairs with hard negatives (paper, "SCL") and on scored pairs."""

import unicodedata
from functools import partial
from typing import Any

from datasets import Dataset
from sentence_transformers.base.sampler import NoDuplicatesBatchSampler

from llm2comp.data.drawn.rows import drawn_once
from llm2comp.data.pairs import write_pairs
from llm2comp.recipe import Supervised
from llm2comp.training.contrastive import train_contrastive
from llm2comp.training.stage_context import StageContext


class DistinctTexts(NoDuplicatesBatchSampler):
    """Puts a text into a batch once at most, because it would be its own negative there.

    Two forms of Unicode of one text are one text here, as they are when rows are drawn. The rows
    themselves keep their form.

    Args:
        dataset: the rows.
        **options: as the stock sampler takes them.
    """

    def __init__(self, dataset: Dataset, **options: Any) -> None:
        super().__init__(dataset, **options)
        self.dataset = self.dataset.with_transform(_in_one_form)


def train_supervised(context: StageContext[Supervised]) -> None:
    """Train stage 3 from the encoder folder `context.source`, and write `context.target`.

    Raises:
        UserError: if the data cannot be used.
    """
    stage, seed, on_bad_row = context.stage, context.recipe.seed, context.recipe.on_bad_row
    draw = partial(write_pairs, stage=stage, seed=seed, on_bad_row=on_bad_row)
    rows = drawn_once(context.workdir, stage, seed, on_bad_row, draw)
    context.log.write_once(stage=stage.stage, **rows.summary)
    held_out = [(row["anchor"], row["positive"]) for row in rows.held_out]
    train_contrastive(context, rows.train, held_out, batch_sampler=DistinctTexts)


def _in_one_form(columns: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return texts in the form NFC."""
    return {
        name: [unicodedata.normalize("NFC", text) for text in texts]
        for name, texts in columns.items()
    }
