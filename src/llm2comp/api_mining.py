"""The function of the Python API that mines hard negatives; `llm2comp.mine` is its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llm2comp.errors import UserError
from llm2comp.utils.files import user_path

if TYPE_CHECKING:
    from llm2comp.inference.mining.summary import Summary
    from llm2comp.utils.choices import Precision


def mine(
    model: str | Path, pairs: str | Path, out: str | Path, *, corpus: str | Path | None = None,
    negatives: int = 1, ranks: tuple[int, int] | None = None, relative_margin: float = 0.05,
    absolute_margin: float = 0.0, reranker: str | Path | None = None, batch_size: int = 32,
    dtype: Precision = "auto",
) -> Summary:  # fmt: skip
    """Find hard negatives for pairs, and write rows that stage 3 trains on.

    A hard negative is a text that the encoder ranks high for a query that it does not answer. The
    positives of a query, and texts that score nearly as high as they do, are left out.

    Args:
        model: name or folder that `load` takes. Queries get its query prompt, texts its document
            prompt.
        pairs: packaged source, local file or hub dataset, with columns `anchor` and `positive`.
            Negatives that it has are kept, and are searched for the other queries.
        out: the `.jsonl` file to write. It must not exist. Its rows have `anchor`, `positive` and
            `negative`, which is a list if `negatives` is above 1 or `pairs` has some of its own.
            These come first.
        corpus: source of texts to search besides the positives of all pairs; or `-`.
        negatives: negatives that are looked for, of each pair.
        ranks: the first rank that is looked at, and the first that is not, counted from 0 by the
            encoder's cosine without the positives, and before the margins. None for all texts.
        relative_margin: leave out texts whose score is above that of the positive less this share
            of it.
        absolute_margin: leave out texts whose score is above that of the positive less this.
        reranker: folder or hub id of a cross-encoder. It scores the texts of `ranks`, or else the
            first ten for each negative, so that answers that nobody labelled are left out.
        batch_size: as in `encode`.
        dtype: as in `load`.

    Returns:
        A summary with the mined `rows`, a `table()` of their scores, `notes()` and `examples()`.

    Raises:
        UserError: if a source or a model cannot be used, `out` exists, or nothing is found.

    Examples:
        >>> summary = llm2comp.mine("minilm", "pairs.jsonl", "mined.jsonl", relative_margin=0)
        >>> summary.rows[0].negatives
        [...]
    """
    from pydantic import ValidationError

    from llm2comp.inference.mining.mining_file import mine_file
    from llm2comp.recipe_parts import HardNegatives
    from llm2comp.utils.yaml_files import explain_validation_error

    try:
        settings = HardNegatives(
            negatives=negatives,
            ranks=ranks,
            relative_margin=relative_margin,
            absolute_margin=absolute_margin,
        )
    except ValidationError as error:
        raise UserError(explain_validation_error(error)) from error
    return mine_file(
        str(model),
        str(pairs),
        None if corpus is None else str(corpus),
        user_path(out),
        settings,
        reranker=None if reranker is None else str(reranker),
        dtype=dtype,
        batch_size=batch_size,
    )
