"""Single texts for unsupervised contrastive learning."""

import logging
from collections.abc import Iterator, Sequence

from datasets import Value

from llm2comp.data import mixture
from llm2comp.data.crops import TEXT_WORDS, Crops
from llm2comp.data.drawn.distinct import Distinct
from llm2comp.data.drawn.left_out import LeftOut
from llm2comp.data.drawn.rows import RowFiles, Summary, warn_if_none_are_held_out
from llm2comp.errors import UserError, counted
from llm2comp.recipe import Unsupervised
from llm2comp.recipe_parts import DataSource

logger = logging.getLogger("llm2comp")

PAIR = {"anchor": Value("string"), "positive": Value("string")}
"""The columns of two views of a text."""


def write_sentences(files: RowFiles, stage: Unsupervised, seed: int, on_bad_row: str) -> Summary:
    """Draw the texts of a stage, and write the two views of each as `anchor` and `positive`.

    Both are the whole text or, with `views: crop`, two spans of it. The first texts are trained on,
    and the last ones are held out.

    Args:
        files: where they are written.
        stage: the stage.
        seed: the same seed gives the same texts in the same order.
        on_bad_row: `fail` or `skip`, as in `llm2comp.data.sources.rows`.

    Returns:
        How many texts there are to train on, and how many were left out.

    Raises:
        UserError: if a source cannot be read, or there are not two texts for a batch.
    """
    trained = stage.steps * stage.batch_size
    left_out = LeftOut()
    crops = Crops(seed) if stage.views == "crop" else None
    count = 0
    with files.train("texts", PAIR, 1000) as train, files.held_out(PAIR) as held_out:
        for text in draw_sentences(
            stage.data, trained + stage.eval_pairs, seed, on_bad_row, left_out, crops
        ):
            anchor, positive = crops.two(text) if crops else (text, text)
            (train if count < trained else held_out).write({"anchor": anchor, "positive": positive})
            count += 1
    texts = min(count, trained)
    if min(texts, stage.batch_size) < 2:
        raise UserError(
            f"unsupervised: {counted(texts, 'text')} in batches of {stage.batch_size}: every text "
            "is alone, and the other texts of its batch are its negatives; give more texts and set "
            "unsupervised.batch_size to 2 or more"
        )
    warn_if_none_are_held_out(stage, count - texts)
    too_short = {"too_short": crops.too_short} if crops and crops.too_short else {}
    return {"texts": texts} | left_out.counts | too_short


def draw_sentences(
    sources: Sequence[DataSource],
    count: int,
    seed: int,
    on_bad_row: str = "fail",
    left_out: LeftOut | None = None,
    crops: Crops | None = None,
) -> Iterator[str]:
    """Draw distinct texts from a weighted mixture of sources.

    Args:
        sources: sources of rows with the column `text`.
        count: how many texts to draw. If there are fewer, a warning is logged.
        seed: the same seed gives the same texts in the same order.
        on_bad_row: `fail` or `skip`, as in `llm2comp.data.sources.rows`.
        left_out: if given, counts what is left out of each source.
        crops: if given, texts that are too short for it are left out.

    Raises:
        UserError: if a source cannot be read, or no source has texts that are long enough.
    """
    distinct = Distinct()
    left_out = LeftOut() if left_out is None else left_out
    shuffled = mixture.shuffled_sources(sources, ["text"], seed, on_bad_row, left_out=left_out)
    streams = [
        filter(crops.fits if crops else None, distinct.texts(rows, source.source, left_out))
        for source, rows in zip(sources, shuffled, strict=True)
    ]
    texts = 0
    for _, text in mixture.draw(sources, streams, "sentences", count):
        texts += 1
        yield text
    left_out.log()
    names = ", ".join(source.source for source in sources)
    if crops and crops.too_short:
        short = counted(crops.too_short, "text has", "texts have")
        short += f" fewer than {TEXT_WORDS} words, too few to crop"
        if not texts:
            raise UserError(f"{names}: all {short}; give longer texts or set views: dropout")
        logger.warning("%s: %s; they are left out", names, short)
    if not texts:
        raise UserError(f"{names}: there are no texts; name a source that has some")
    if texts < count:
        logger.warning("%s: %s, %d were asked for", names, counted(texts, "text"), count)
