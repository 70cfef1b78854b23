"""Pairs for supervised contrastive learning: plain, with a hard negative, or with a score."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from datasets import Value

from llm2comp.data import mixture
from llm2comp.data.drawn.distinct import Distinct
from llm2comp.data.drawn.left_out import LeftOut
from llm2comp.data.drawn.pair_file import QUERY, PairFile
from llm2comp.data.drawn.rows import RowFiles, Summary, warn_if_none_are_held_out
from llm2comp.data.formats.layouts import PROMPT
from llm2comp.data.sources import NEGATIVE, SCORE
from llm2comp.errors import UserError, counted
from llm2comp.recipe import Supervised
from llm2comp.recipe_parts import DataSource, dataset_names

logger = logging.getLogger("llm2comp")

REQUIRED = ("anchor", "positive")
OPTIONAL = (NEGATIVE, SCORE)
DATASET = "dataset"
"""Column of a held-out pair: the name of the dataset that it would be trained in."""
OF_SOURCE = "source:"
"""What the torch name of a dataset begins with, because a module has a `train` of its own."""
ROW_PROMPTS = "row_prompts"
"""Key of a summary: the prompts of rows, by the name of their dataset."""


def write_pairs(files: RowFiles, stage: Supervised, seed: int, on_bad_row: str) -> Summary:
    r"""Draw the pairs of a stage from a weighted mixture, and write one dataset per source.

    The sizes of the datasets follow the weights. If a source has too few rows, the others share its
    part. Each training batch should come from one dataset, so that in-batch negatives are of one
    kind.

    The name of a dataset is that of its source (`name#2` for the second use of a source). Its
    columns are those of `llm2comp.data.drawn.pair_file`.
    If a source has an instruction, its anchors are `instruction + ":" + query + "\n"` (paper,
    stage 3). Rows with scores are measured only if there are no others, or only one. No held-out
    pair is trained on.

    Args:
        files: where they are written.
        stage: the stage. Its sources have the columns `anchor` and `positive`, and may have
            `negative` or `score`.
        seed: the same seed gives the same rows in the same order.
        on_bad_row: `fail` or `skip`, as in `llm2comp.data.sources.rows`.

    Returns:
        How many pairs there are to train on by source, what was left out, and the prompts of rows.

    Raises:
        UserError: if a source cannot be read, has no rows, or has both negatives and scores, or if
            batches cannot be filled because a text is in many rows.
    """
    trained = stage.steps * stage.batch_size
    left_out = LeftOut()
    held_out: list[dict[str, Any]] = []
    pairs = Distinct()
    number = 0

    def wanted(row: Mapping[str, Any]) -> bool:
        # A row with many negatives is several rows with one anchor and positive.
        is_new = pairs.is_new(row["anchor"], row["positive"])
        return is_new or number < trained

    with ExitStack() as stack:
        parts = [
            PairFile(source, name, files, stack)
            for source, name in zip(stage.data, dataset_names(stage.data), strict=True)
        ]
        count = trained + stage.eval_pairs
        for place, row in _draw_pairs(stage.data, count, seed, on_bad_row, left_out, wanted):
            if number < trained:
                parts[place].write(row)
            else:
                held_out.append(row | {DATASET: parts[place].name})
            number += 1
    total = sum(part.rows for part in parts)
    if total < trained:
        logger.warning("%s, %d were asked for", counted(total, "pair"), trained)
    plain = [row for row in held_out if SCORE not in row]
    scored = [row for row in held_out if SCORE in row]
    measured = plain if len(plain) > 1 or not scored else scored
    warn_if_none_are_held_out(stage, len(measured))
    for part in parts:
        part.require_batches(stage.batch_size, trained)
        left_out.count("false_negatives", part.source.source, part.tell_positives_apart())
    left_out.log()
    columns = (*REQUIRED, DATASET)
    features = {column: Value("string") for column in columns} | {SCORE: Value("float32")}
    with files.held_out(features) as writer:
        for row in measured:
            score = float(row[SCORE]) if SCORE in row else None
            writer.write({column: row[column] for column in columns} | {SCORE: score})
    by_source = {part.name: part.rows for part in parts}
    prompts = {part.name: sorted(part.prompts) for part in parts if part.prompts}
    return {"pairs": by_source} | ({ROW_PROMPTS: prompts} if prompts else {}) | left_out.counts


def row_prompts(sources: Sequence[DataSource], summary: Summary) -> list[list[str]]:
    """Return, for each source, the prompts that its rows have before their anchors of their own.

    Args:
        sources: of a stage.
        summary: what `write_pairs` returned for it.
    """
    found = summary.get(ROW_PROMPTS, {})  # older rows lack it
    return [found.get(name, []) for name in dataset_names(sources)]


def _draw_pairs(
    sources: Sequence[DataSource],
    count: int,
    seed: int,
    on_bad_row: str,
    left_out: LeftOut,
    wanted: Callable[[Mapping[str, Any]], bool],
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Draw distinct rows from a weighted mixture.

    Two rows of a source are the same if anchor, positive and negatives are.

    Args:
        sources: as `write_pairs` takes them.
        count: how many rows to draw, if there are so many.
        seed: the same seed gives the same rows in the same order.
        on_bad_row: `fail` or `skip`, as in `llm2comp.data.sources.rows`.
        left_out: counts what is left out of each source.
        wanted: asked of each row just before it is drawn; the others are passed over.

    Yields:
        The place of a source, and its row with the instruction before the anchor. `QUERY` is the
        query without its instruction or prompt.

    Raises:
        UserError: if a source cannot be read, or has both negatives and scores.
    """
    shuffled = mixture.shuffled_sources(sources, REQUIRED, seed, on_bad_row, OPTIONAL, left_out)
    streams = [
        filter(wanted, _distinct_rows(rows, source.source, left_out))
        for source, rows in zip(sources, shuffled, strict=True)
    ]
    for place, row in mixture.draw(sources, streams, "pairs", count):
        require_one_kind(sources[place], row)
        row[QUERY] = row["anchor"].removeprefix(row.get(PROMPT, ""))
        row["anchor"] = add_instruction(sources[place].query_instruction, row["anchor"])
        yield place, row


def require_one_kind(source: DataSource, row: Mapping[str, Any]) -> None:
    """Check that a row does not have both a negative and a score, which have different losses.

    Raises:
        UserError: if it has both.
    """
    if set(OPTIONAL) <= row.keys():
        raise UserError(f"{source.source}: has both negatives and scores; use one of them")


def add_instruction(instruction: str, query: str) -> str:
    r"""Return `instruction:query\n` (paper, stage 3), or the query if there is no instruction."""
    return f"{instruction}:{query}\n" if instruction else query


def module_name(dataset: str) -> str:
    """Return the name of a dataset as a torch module may have it, which is without dots."""
    return OF_SOURCE + dataset.replace("%", "%25").replace(".", "%2E")


def dataset_name(module: str) -> str:
    """Return the name of a dataset from that of its torch module."""
    return module.removeprefix(OF_SOURCE).replace("%2E", ".").replace("%25", "%")


def require_minable(stage: Supervised, columns: Iterable[Collection[str]]) -> None:
    """Check that a stage that mines has a source of plain pairs. The others stay as they are.

    Args:
        stage: the stage.
        columns: our names of the columns that the rows of each source have.

    Raises:
        UserError: if there is none.
    """
    reasons = []
    for source, names in zip(stage.data, columns, strict=True):
        kinds = ["a teacher"] if source.teacher else [f"{one}s" for one in OPTIONAL if one in names]
        reasons += [f"{source.source} has {kind}" for kind in kinds[:1]]
    if stage.mining is not None and len(reasons) == len(stage.data):
        raise UserError(
            f"{stage.stage}.mining: no source can be mined, because {' and '.join(reasons)}; leave "
            "mining out, or add a source of pairs alone"
        )


def _distinct_rows(
    rows: Iterator[dict[str, Any]], source: str, left_out: LeftOut
) -> Iterator[dict[str, Any]]:
    """Yield the first row of each anchor, positive and negatives."""
    distinct = Distinct()
    for row in rows:
        # A row without negatives has an empty one, as in older versions.
        if distinct.is_new(row["anchor"], row["positive"], *row.get(NEGATIVE, [""])):
            yield row
        else:
            left_out.count("repeated", source)
