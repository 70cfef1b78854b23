"""Stage 2 (UCL): SimCSE, where a pair is one text read twice with dropout (paper, "UCL")."""

from datasets import Dataset
from sentence_transformers.sentence_transformer.training_args import BatchSamplers

from llm2comp.data.sentences import load_sentences
from llm2comp.recipe import Unsupervised
from llm2comp.training.contrastive import train_contrastive
from llm2comp.training.stage_context import StageContext


def train_unsupervised(context: StageContext[Unsupervised]) -> None:
    """Train stage 2 from the encoder folder `context.source`, and write `context.target`.

    Raises:
        UserError: if the data cannot be used.
    """
    stage, recipe = context.stage, context.recipe
    count = stage.steps * stage.batch_size
    texts = load_sentences(
        stage.data, count=count + stage.eval_pairs, seed=recipe.seed, on_bad_row=recipe.on_bad_row
    )["text"]
    trained, held_out = texts[:count], texts[count:]
    train_contrastive(
        context,
        Dataset.from_dict({"anchor": trained, "positive": trained}),
        [(text, text) for text in held_out],
        batch_sampler=BatchSamplers.BATCH_SAMPLER,
        attention_dropout=stage.attention_dropout,
    )
