"""Stage 2 (UCL): SimCSE, the same text twice under different dropout (paper, "UCL")."""

from pathlib import Path

from datasets import Dataset
from sentence_transformers.sentence_transformer.training_args import BatchSamplers

from llm2comp import recipe
from llm2comp.data.sentences import load_sentences
from llm2comp.training.contrastive import train_contrastive
from llm2comp.training.run_log import RunLog


def train_unsupervised(
    run: recipe.Recipe,
    stage: recipe.Unsupervised,
    source: Path,
    folder: Path,
    work: Path,
    log: RunLog,
) -> None:
    """Train stage 2 from the encoder folder ``source`` and write ``folder``."""
    count = stage.steps * stage.batch_size
    texts = load_sentences(
        stage.data, count=count + stage.eval_pairs, seed=run.seed, on_bad_row=run.on_bad_row
    )["text"]
    seen, held = texts[:count], texts[count:]
    twice = Dataset.from_dict({"anchor": seen, "positive": seen})
    train_contrastive(
        run,
        stage,
        twice,
        [(text, text) for text in held],
        source,
        folder,
        work,
        log,
        batch_sampler=BatchSamplers.BATCH_SAMPLER,
        attention_dropout=stage.attention_dropout,
    )
