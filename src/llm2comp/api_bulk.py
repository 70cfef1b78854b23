"""The function of the Python API that encodes many files; `llm2comp.encode_files` is its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm2comp.inference.bulk.run import Encoded
    from llm2comp.utils.choices import EmbeddingPrecision, Engine, OnBadRow, Precision, Prompt


def encode_files(
    model: str | Path, files: str | Path, out: str | Path, *, engine: Engine = "local",
    keep: Sequence[str] = (), prompt: Prompt | None = None, batch_size: int = 32,
    workers: int | None = None, dtype: Precision = "auto", merge_threshold: float | None = None,
    dim: int | None = None, precision: EmbeddingPrecision = "float32",
    on_bad_row: OnBadRow = "fail", memory_tokens: int | None = None,
) -> Encoded:  # fmt: skip
    """Encode each of many files into a `.parquet` file of the same name, and return what was done.

    Files that are encoded already are left out, so the same call continues one that was stopped. A
    file that was changed is encoded again. A file that fails does not stop the others.

    Args:
        model: name or folder that `load` takes.
        files: folder, file or pattern of files as `encode_file` takes them; also a URL that fsspec
            takes, such as `"s3://bucket/texts/*.parquet"`.
        out: folder of the files of vectors, or its URL. It is of one model and its settings.
        engine: `"local"`, or `"ray"` for a cluster: the one that `RAY_ADDRESS` or this machine
            names, or else one of this machine alone. Both write the same files.
        keep: columns that stay beside the column `embedding`: `"id"`, `"text"`, or both. Every row
            then needs an id, a string or an integer.
        prompt: as in `encode`.
        batch_size: as in `encode`.
        workers: processes that share the threads, or actors of Ray. `None` is one process, or one
            actor per GPU, or one per machine if there are none.
        dtype: as in `load`.
        merge_threshold: as in `load`.
        dim: as in `encode`.
        precision: as in `encode_file`. All files have the same ranges of int8 and uint8.
        on_bad_row: `"fail"` fails the file of a row without a text, or without an id that is kept.
            `"skip"` leaves such rows out and lists them; row i of the vectors is then not row i of
            the file, so keep the ids.
        memory_tokens: as in `load`.

    Returns:
        The numbers of `files`, of `unchanged` ones among them and of new `rows`, and the files that
        `failed`, with the reason. `failed_file` in `out` lists them too. The number of rows that
        were `skipped`, which the files in `skipped_folder` list.

    Raises:
        UserError: if there are no files, the model cannot be loaded, `out` holds vectors of another
            model or other settings, or the disk is full.

    Examples:
        >>> done = llm2comp.encode_files("smollm2-135m-llm2comp", "*.txt", "vectors")
        >>> done.rows, done.failed
        (8, {})
    """
    from llm2comp.inference.bulk.encoding import Settings
    from llm2comp.inference.bulk.run import encode_files as encode_all

    settings = Settings(
        str(model),
        prompt,
        dtype,
        merge_threshold,
        dim,
        precision,
        tuple(keep),
        batch_size,
        on_bad_row,
        memory_tokens,
    )
    return encode_all(settings, str(files), str(out), engine, workers)
