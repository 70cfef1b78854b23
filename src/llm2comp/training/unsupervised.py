"""Stage 2 (UCL): a pair is one text read twice with dropout (paper, "UCL"), or two spans of it."""

from functools import partial

from sentence_transformers.sentence_transformer.training_args import BatchSamplers

from llm2comp.data.drawn.rows import drawn_once
from llm2comp.data.sentences import write_sentences
from llm2comp.recipe import Unsupervised
from llm2comp.training.contrastive import train_contrastive
from llm2comp.training.distributed import world
from llm2comp.training.stage_context import StageContext


def train_unsupervised(context: StageContext[Unsupervised]) -> None:
    """Train stage 2 from the encoder folder `context.source`, and write `context.target`.

    Raises:
        UserError: if the data cannot be used.
    """
    stage, seed, on_bad_row = context.stage, context.recipe.seed, context.recipe.on_bad_row
    draw = partial(write_sentences, stage=stage, seed=seed, on_bad_row=on_bad_row)
    rows = world.main_first(lambda: drawn_once(context.workdir, stage, seed, on_bad_row, draw))
    context.log.write_once(stage=stage.stage, **rows.summary)
    (texts,) = rows.train.values()
    train_contrastive(
        context,
        texts,
        rows.held_out,
        batch_sampler=BatchSamplers.BATCH_SAMPLER,
        attention_dropout=stage.attention_dropout,
    )
