"""Mine hard negatives for a file of pairs, and write the rows that a recipe trains on."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm2comp.data import sources
from llm2comp.data.drawn.distinct import digest
from llm2comp.data.drawn.left_out import LeftOut
from llm2comp.data.formats.layouts import PROMPT
from llm2comp.errors import UserError
from llm2comp.inference.load import load
from llm2comp.inference.mining.miner import Mined, mine, remedies
from llm2comp.inference.mining.reranker import load_reranker
from llm2comp.inference.mining.summary import Summary
from llm2comp.recipe_parts import DataSource, HardNegatives
from llm2comp.utils.choices import Precision
from llm2comp.utils.files import atomic_file, require_file

ENDING = ".jsonl"
COLUMNS = ("anchor", "positive")
OPTIONAL = (sources.NEGATIVE, sources.SCORE)
ALL = 1_000_000
"""More negatives than a row has, so that all of them stay with each of its positives."""


def require_new(out: Path) -> None:
    """Check that the rows can be written, before the work begins.

    Raises:
        UserError: if the file exists, does not end in `.jsonl`, or cannot be written.
    """
    require_file(out)
    if out.suffix != ENDING:
        raise UserError(f"--out {out}: rows are written to {ENDING} files")
    if out.exists():  # it may be rows that somebody labelled
        raise UserError(f"--out {out}: it exists; remove it, or name another file")


def mine_file(
    model: str,
    pairs: str,
    corpus: str | None,
    out: Path,
    settings: HardNegatives,
    *,
    reranker: str | None = None,
    dtype: Precision = "auto",
    batch_size: int = 32,
) -> Summary:
    """Mine negatives for the pairs of a source, and write a row for each pair that has some.

    A row has `anchor`, `positive` and `negative`, which is a list if several negatives are asked
    for, or pairs have negatives of their own. These come first in a row, and are searched for the
    other queries. If rows have prompts, the file is in the layout of FlagEmbedding, as theirs is.

    Args:
        model: name or folder of an encoder.
        pairs: a source with the columns `anchor` and `positive`, and perhaps `negative`.
        corpus: a source with the column `text`, or a folder, which is read whole; None for the
            positives alone.
        out: the file to write. It must not exist.
        settings: which texts are taken.
        reranker: name or folder of a cross-encoder, if one is to score.
        dtype: of the encoder, as `llm2comp.load` takes it.
        batch_size: texts per batch.

    Raises:
        UserError: if a source, a model or the output cannot be used, or nothing is found.
    """
    require_new(out)
    left_out = LeftOut()
    source = DataSource(source=pairs, negatives=ALL)
    rows = list(sources.rows(source, COLUMNS, "fail", OPTIONAL, left_out))
    if any(sources.SCORE in row for row in rows):
        raise UserError(
            f"{pairs}: it has scores, so its positives may be no answers; leave out the column "
            f"{sources.SCORE!r} if they all are"
        )
    texts = []
    if corpus is not None:
        read = sources.rows(DataSource(source=corpus), ("text",), "fail", whole=True)
        texts = [row["text"] for row in read]
    judge = None if reranker is None else load_reranker(reranker)
    encoder = load(model, dtype)
    own = list(_own(rows))
    prompts = {digest(row["anchor"]): row[PROMPT] for row in rows if PROMPT in row}
    mined = mine(
        encoder,
        [(row["anchor"], row["positive"]) for row in rows],
        settings,
        corpus=texts,
        negatives=[(anchor, text) for anchor, _, text in own],
        reranker=judge,
        prompts=("" if prompts else None, None),  # prompts of rows stand in the place of its own
        batch_size=batch_size,
    )
    remedy = remedies(settings, reranked=judge is not None)
    if not any(row.negatives for row in mined):
        raise UserError(f"{pairs}: no hard negative was found for any pair; {remedy}")
    together = _with_own(mined, own, pairs, left_out)
    found = [row for row in together if row.own or row.negatives]
    several = settings.negatives > 1 or any(row.own for row in found)
    with atomic_file(out) as partial, partial.open("w", encoding="utf-8") as stream:
        for row in found:
            prompt = prompts.get(digest(row.anchor), "")
            content = _with_prompt(row, prompt) if prompts else _columns(row, several=several)
            stream.write(json.dumps(content, ensure_ascii=False) + "\n")
    left_out.log()
    return Summary(len(mined), settings.negatives, found, remedy)


def _own(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Yield each negative that a file has, after its pair."""
    for row in rows:
        for text in row.get(sources.NEGATIVE, ()):
            yield row["anchor"], row["positive"], text


def _with_own(
    mined: list[Mined], own: Iterable[tuple[str, str, str]], source: str, left_out: LeftOut
) -> list[Mined]:
    """Return what was mined with the negatives that the file has for each pair.

    A negative that is a positive of its query, in another row, is left out.
    """
    positives = {digest(row.anchor, row.positive) for row in mined}
    by_pair: dict[bytes, dict[bytes, str]] = {}
    false = set()
    for anchor, positive, text in own:
        if digest(anchor, text) in positives:
            false.add(digest(anchor, positive, text))
        else:
            by_pair.setdefault(digest(anchor, positive), {}).setdefault(digest(text), text)
    left_out.count("false_negatives", source, len(false))
    return [
        replace(row, own=list(by_pair.get(digest(row.anchor, row.positive), {}).values()))
        for row in mined
    ]


def _columns(row: Mined, *, several: bool) -> dict[str, Any]:
    negatives = [*row.own, *row.negatives]
    return {
        "anchor": row.anchor,
        "positive": row.positive,
        "negative": negatives if several else negatives[0],
    }


def _with_prompt(row: Mined, prompt: str) -> dict[str, Any]:
    """Return the columns of FlagEmbedding, which have the prompt of a query beside it."""
    return {
        "query": row.anchor.removeprefix(prompt),
        "pos": [row.positive],
        "neg": [*row.own, *row.negatives],
        "prompt": prompt,
    }
