"""Stage 3 (SCL): train on pairs with hard negatives (paper, "SCL") and on scored pairs."""

import logging
from collections.abc import Callable, Iterator, Set
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers.base.sampler import NoDuplicatesBatchSampler

from llm2comp.data.drawn.distinct import number
from llm2comp.data.drawn.pair_file import POSITIVES, texts_of
from llm2comp.data.drawn.rows import ROWS, Rows, drawn_once
from llm2comp.data.pairs import require_minable, row_prompts, write_pairs
from llm2comp.data.sources import SCORE
from llm2comp.errors import UserError
from llm2comp.inference.mining.reranker import is_reranker
from llm2comp.recipe import Stage, Supervised
from llm2comp.recipe_parts import dataset_names
from llm2comp.training.contrastive import train_contrastive
from llm2comp.training.distillation.labels import with_labels
from llm2comp.training.distributed import world
from llm2comp.training.losses.distillation import LABEL
from llm2comp.training.stage_context import StageContext

logger = logging.getLogger("llm2comp")

TEACHER = "teacher"
"""Folder of the labels of teachers, beside the rows."""
KNOWN = "known "
"""What is before the number of a positive of an anchor; the number of a text has nothing there."""


class DistinctTexts(NoDuplicatesBatchSampler):
    """Puts a text into a batch once at most, and no positive of an anchor as its negative.

    All other texts of a batch are negatives of an anchor. So a text that is there twice would be
    its own negative, and so would a positive of the anchor from another row. Two forms of Unicode
    of one text are one text here, as they are when rows are drawn.

    Rows with a score or the label of a teacher have losses without in-batch negatives, so any of
    them may share a batch.

    Args:
        dataset: the rows, with the columns of `llm2comp.data.drawn.pair_file`.
        **options: as the stock sampler takes them.
    """

    def __init__(self, dataset: Dataset, **options: Any) -> None:
        # The stock sampler removes such columns.
        self._has_negatives = not {SCORE, LABEL} & set(dataset.column_names)
        super().__init__(dataset, **options)
        self.dataset = self.dataset.with_transform(_numbers)

    def _iter_one_pass(
        self, get_sample_values: Callable[[int], Any], has_overlap: Callable[..., bool]
    ) -> Iterator[list[int]]:
        """Yield the batches of a pass over the rows, as the stock sampler asks for them."""
        del has_overlap  # it compares texts alone
        if self._has_negatives:
            yield from super()._iter_one_pass(get_sample_values, _exclude_each_other)
        else:
            yield from super()._iter_one_pass(lambda _: set(), lambda *_: False)


def require_models(stage: Stage) -> None:
    """Check that the guide and the teachers of a stage are there, before anything is trained.

    Raises:
        UserError: if one is not, the guide is a cross-encoder, or another stage has a teacher.
    """
    teachers = [source.teacher for source in stage.data if source.teacher is not None]
    if not isinstance(stage, Supervised):
        if teachers:
            raise UserError(f"{stage.stage} has no teacher; only supervised learns from one")
        return
    for name in teachers:
        is_reranker(name)  # it looks for the model
    if stage.guide is not None and is_reranker(stage.guide):
        raise UserError(f"guide {stage.guide!r} is a cross-encoder; name an encoder")


def train_supervised(context: StageContext[Supervised]) -> None:
    """Train stage 3 from the encoder folder `context.source`, and write `context.target`.

    Raises:
        UserError: if the data cannot be used.
    """
    stage, seed, on_bad_row = context.stage, context.recipe.seed, context.recipe.on_bad_row
    draw = partial(write_pairs, stage=stage, seed=seed, on_bad_row=on_bad_row)
    rows = world.main_first(lambda: drawn_once(context.workdir, stage, seed, on_bad_row, draw))
    tell_of_another_order(rows, stage, context.workdir)
    context.log.write_once(stage=stage.stage, **rows.summary)
    # A source may have negatives in few rows, which only the drawn rows show.
    require_minable(stage, [rows.train[name].column_names for name in dataset_names(stage.data)])
    context = replace(context, row_prompts=row_prompts(stage.data, rows.summary))
    # If the rows are drawn again, because a plan changes their number, the labels are too.
    folder = context.workdir / ROWS / TEACHER
    assert context.source is not None
    label = partial(
        with_labels,
        folder=folder,
        student=context.source,
        row_prompts=context.row_prompts,
        trust_remote_code=context.recipe.backbone.trust_remote_code,
    )
    train = world.main_first(lambda: label(rows.train, stage.data))
    train_contrastive(context, train, rows.held_out, batch_sampler=DistinctTexts)


def tell_of_another_order(rows: Rows, stage: Supervised, workdir: Path) -> None:
    """Warn if a stage that an older version stopped goes on with other batches.

    Rows with scores or a teacher used to be kept apart where they have a text in common.

    Args:
        rows: of the stage.
        stage: its settings.
        workdir: its work folder.
    """
    older = SCORE not in rows.held_out.column_names  # a newer version writes the column
    if not older or not any(workdir.glob("checkpoint-*")):
        return
    share = [
        name
        for name, source in zip(dataset_names(stage.data), stage.data, strict=True)
        if source.teacher is not None or SCORE in rows.train[name].column_names
        if _repeats_a_text(rows.train[name])
    ]
    if share:
        logger.warning(
            "%s: an older version began it, and put rows of %s with a text in common into "
            "different batches. They may share one now, so the order of the rows is new: some are "
            "read twice, and others not at all; to train the stage anew, remove %s",
            stage.stage,
            " and ".join(share),
            workdir,
        )


def _repeats_a_text(part: Dataset) -> bool:
    """Return whether two rows have a text in common."""
    seen: set[int] = set()
    texts = [name for name in part.column_names if name not in (POSITIVES, SCORE)]
    for row in part.select_columns(texts):
        found = {number(text) for value in row.values() for text in texts_of(value)}
        if not seen.isdisjoint(found):
            return True
        seen |= found
    return False


def _numbers(columns: dict[str, list[Any]]) -> dict[str, list[str]]:
    """Return the numbers of a row's texts, and of its anchor's positives, each as a column.

    The stock sampler compares the columns of rows, one row at a time.
    """
    row = {name: value for name, (value,) in columns.items()}
    known = row.pop(POSITIVES, [])
    texts = [str(number(text)) for value in row.values() for text in texts_of(value)]
    numbers = [*texts, *(f"{KNOWN}{one}" for one in known)]
    return {str(place): [one] for place, one in enumerate(numbers)}


def _exclude_each_other(row: Any, batch: Set[Any]) -> bool:
    """Return whether a row shares a text with a batch, or either has a positive of the other."""
    texts = {one for one in row if not one.startswith(KNOWN)}
    known = {one.removeprefix(KNOWN) for one in row - texts}
    marked = {f"{KNOWN}{one}" for one in texts}
    return not batch.isdisjoint(texts | known | marked)
