"""Stage 3 (SCL): queries, positives and hard negatives (paper, "SCL"); scored pairs besides."""

from pathlib import Path

from sentence_transformers.sentence_transformer.training_args import BatchSamplers

from llm2comp import recipe
from llm2comp.data.pairs import load_pairs
from llm2comp.training.contrastive import train_contrastive
from llm2comp.training.run_log import RunLog


def train_supervised(
    run: recipe.Recipe,
    stage: recipe.Supervised,
    source: Path,
    folder: Path,
    work: Path,
    log: RunLog,
) -> None:
    """Train stage 3 from the encoder folder ``source`` and write ``folder``."""
    pairs, held = load_pairs(
        stage.data,
        count=stage.steps * stage.batch_size,
        seed=run.seed,
        on_bad_row=run.on_bad_row,
        held_out=stage.eval_pairs,
    )
    train_contrastive(
        run,
        stage,
        pairs,
        held,
        source,
        folder,
        work,
        log,
        # A text that stands twice in a batch would be its own negative.
        batch_sampler=BatchSamplers.NO_DUPLICATES,
    )
