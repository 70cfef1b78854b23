"""Mine hard negatives for a file of pairs, and write the rows that a recipe trains on."""

import json
from pathlib import Path

from llm2comp.data import sources
from llm2comp.errors import UserError
from llm2comp.inference.load import load
from llm2comp.inference.mining.miner import Mined, mine
from llm2comp.inference.mining.reranker import load_reranker
from llm2comp.inference.mining.summary import Summary
from llm2comp.recipe import DataSource
from llm2comp.recipe_parts import HardNegatives
from llm2comp.utils.choices import Precision
from llm2comp.utils.files import atomic_file, require_file

ENDING = ".jsonl"


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
    for.

    Args:
        model: name or folder of an encoder.
        pairs: a source with the columns `anchor` and `positive`.
        corpus: a source with the column `text`; None for the positives alone.
        out: the file to write. It must not exist.
        settings: which texts are taken.
        reranker: name or folder of a cross-encoder, if one is to score.
        dtype: of the encoder, as `llm2comp.load` takes it.
        batch_size: texts per batch.

    Raises:
        UserError: if a source, a model or the output cannot be used, or no pair has a negative.
    """
    require_new(out)
    rows = sources.rows(DataSource(source=pairs), ("anchor", "positive"), "fail")
    read = [(row["anchor"], row["positive"]) for row in rows]
    texts = []
    if corpus is not None:
        texts = [row["text"] for row in sources.rows(DataSource(source=corpus), ("text",), "fail")]
    judge = None if reranker is None else load_reranker(reranker)
    encoder = load(model, dtype)
    mined = mine(encoder, read, settings, corpus=texts, reranker=judge, batch_size=batch_size)
    found = [row for row in mined if row.negatives]
    if not found:
        raise UserError(
            f"{pairs}: no pair has a hard negative; lower the margins, begin at a lower rank, or "
            "give a larger corpus"
        )
    with atomic_file(out) as partial, partial.open("w", encoding="utf-8") as stream:
        for row in found:
            stream.write(_line(row, several=settings.negatives > 1))
    return Summary(len(mined), settings.negatives, found)


def _line(row: Mined, *, several: bool) -> str:
    negative = row.negatives if several else row.negatives[0]
    content = {"anchor": row.anchor, "positive": row.positive, "negative": negative}
    return json.dumps(content, ensure_ascii=False) + "\n"
