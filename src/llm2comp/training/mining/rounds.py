"""Training in rounds, each with negatives that the encoder so far has mined.

A round ends as a run does that is stopped after a checkpoint, and the next one begins as a run that
is resumed. So a stage that was really stopped gives the same encoder as one that was not.
"""

import logging
from collections.abc import Mapping

import torch
from datasets import DatasetDict
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm2comp.data.drawn.distinct import number
from llm2comp.data.drawn.full_batches import WELL_FILLED, RowTexts
from llm2comp.data.drawn.rows import ROWS
from llm2comp.data.pairs import dataset_name
from llm2comp.data.sources import NEGATIVE
from llm2comp.errors import UserError
from llm2comp.inference.mining.miner import remedies
from llm2comp.inference.precision import computing_in
from llm2comp.recipe import Supervised
from llm2comp.training.checkpoints import MINED, last_checkpoint, step_of
from llm2comp.training.distributed import world
from llm2comp.training.mining.negatives import Prompts, mine_columns, with_columns
from llm2comp.training.stage_context import StageContext
from llm2comp.training.trainer import load_trained

logger = logging.getLogger("llm2comp")


class RoundOver(Exception):  # noqa: N818 (it is no error)
    """The last step of a round is in a checkpoint."""


class RoundEnd(TrainerCallback):
    """Ends a round: writes a checkpoint after its last step, and raises `RoundOver`.

    A stage that ends early, because it no longer gets better, ends at this step too.

    Args:
        step: the last step of the round.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Ask for a checkpoint."""
        if self._is_over(state, control):
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """End the round.

        Raises:
            RoundOver: if this is its last step.
        """
        if self._is_over(state, control):
            raise RoundOver

    def _is_over(self, state: TrainerState, control: TrainerControl) -> bool:
        return state.global_step == self.step and not control.should_training_stop


def begin_round(
    context: StageContext[Supervised],
    model: SentenceTransformer,
    data: DatasetDict,
    prompts: Mapping[str, Prompts],
    dtype: torch.dtype,
) -> tuple[DatasetDict, RoundEnd]:
    """Return the rows with the negatives of the round that a stage goes on with, and its end.

    They are mined as the round begins, and written beside the rows. A stage that is resumed within
    a round reads them from there.

    Args:
        context: the stage, which mines.
        model: the encoder in training; it gets the weights of the last checkpoint.
        data: the rows of each source.
        prompts: by the name of a source, what is put before its texts in training.
        dtype: precision that the encoder computes in.

    Raises:
        UserError: if negatives cannot be mined, or those of the round are missing or damaged.
    """
    stage, mining, workdir = context.stage, context.stage.mining, context.workdir
    assert mining is not None
    checkpoint = world.from_main(lambda: last_checkpoint(workdir))
    done = step_of(checkpoint) if checkpoint else 0
    every = mining.every or stage.steps
    first = min(done, stage.steps - 1) // every * every
    # If the rows are drawn again, because a plan changes their number, it is gone with them.
    folder = workdir / ROWS / f"{MINED}-{first}"

    def mine_once() -> None:
        if folder.exists():
            return
        if done > first:
            raise UserError(
                f"{folder} is missing, and {stage.stage} has gone on since step {first}, when its "
                f"negatives were mined; restore it, or remove {workdir} to begin the stage again"
            )
        if checkpoint:
            load_trained(model, checkpoint)
        with computing_in(model, dtype):
            mine_columns(data, model, mining, folder, prompts)

    world.from_main(mine_once)
    rows, numbers = with_columns(data, folder)
    if not any(one["negatives"] for one in numbers.values()):
        logger.warning(
            "mining found no negatives after step %d of %s, so those of the batch are all; %s",
            first,
            stage.stage,
            remedies(mining, reranked=False),
        )
    if world.is_main():
        _warn_of_small_batches(data, rows, stage.batch_size, first)
    context.log.write_once(stage=stage.stage, mined={"after_step": first} | numbers)
    return rows, RoundEnd(first + every)


def _warn_of_small_batches(data: DatasetDict, rows: DatasetDict, size: int, first: int) -> None:
    """Warn of mined negatives that keep rows apart. A batch holds a text once."""
    for name, part in rows.items():
        if part is data[name]:
            continue  # nothing was mined for it
        texts, before = RowTexts(), RowTexts()
        columns = (part[column] for column in ("anchor", "positive", NEGATIVE))
        for anchor, positive, negatives in zip(*columns, strict=True):
            pair = number(anchor), number(positive)
            before.add(*pair, ())
            texts.add(*pair, map(number, negatives))
        fit = texts.fit(size)
        if fit.share < WELL_FILLED and fit.rows < before.fit(size).rows:
            logger.warning(
                "%s with the negatives mined after step %d: %s; mine at other ranks, or give more "
                "texts to search",
                dataset_name(name),
                first,
                fit.reason,
            )
