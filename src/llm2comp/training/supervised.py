"""Stage 3 (SCL): train on pairs with hard negatives (paper, "SCL") and on scored pairs."""

from sentence_transformers.sentence_transformer.training_args import BatchSamplers

from llm2comp.data.pairs import load_pairs
from llm2comp.recipe import Supervised
from llm2comp.training.contrastive import train_contrastive
from llm2comp.training.stage_context import StageContext


def train_supervised(context: StageContext[Supervised]) -> None:
    """Train stage 3 from the encoder folder `context.source`, and write `context.target`.

    Raises:
        UserError: if the data cannot be used.
    """
    stage, recipe = context.stage, context.recipe
    pairs, held_out = load_pairs(
        stage.data,
        count=stage.steps * stage.batch_size,
        seed=recipe.seed,
        on_bad_row=recipe.on_bad_row,
        held_out=stage.eval_pairs,
    )
    # A text that is in a batch twice would be its own negative.
    train_contrastive(context, pairs, held_out, batch_sampler=BatchSamplers.NO_DUPLICATES)
