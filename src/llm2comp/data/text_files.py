"""Read the texts of a file one after another, every row of it, empty ones too.

Unlike training data, where an empty row is a mistake, a file to be encoded
keeps all its rows, so that row i of the vectors is row i of the file.
"""

from collections.abc import Iterator
from pathlib import Path

from llm2comp.data import files
from llm2comp.errors import UserError

COLUMN = "text"
"""The column, or key, of structured files that holds the text."""


def read_texts(file: Path) -> Iterator[str]:
    """Yield the texts of a .txt (one a line), .jsonl, .csv or .parquet file.

    Structured files hold them under ``text``. Lone surrogates, which JSON can
    spell and no tokenizer takes, become U+FFFD.

    Raises:
        UserError: if the file is missing, of another kind, or has a row
            without a text; the message names file and line.
    """
    for number, row in files.read(file):
        if isinstance(row, files.BadRow):
            raise UserError(f"{file}:{number}: {row.reason}")
        if COLUMN not in row:
            raise UserError(f"{file}:{number}: no {COLUMN!r}; it has {', '.join(map(str, row))}")
        text = row[COLUMN]
        if not isinstance(text, str):
            raise UserError(
                f"{file}:{number}: {COLUMN!r} is not a string but {type(text).__name__}"
            )
        clean = replace_surrogates(text)
        if clean != text and file.suffix != ".jsonl":  # where no escape can spell a surrogate
            raise UserError(f"{file}:{number}: not UTF-8; convert the file first")
        yield clean


def require_texts(file: Path) -> None:
    """Check that a file can be read and has a text.

    Raises:
        UserError: if not.
    """
    if next(read_texts(file), None) is None:
        raise UserError(f"{file}: no texts in it")


def replace_surrogates(text: str) -> str:
    """Return the text with surrogate pairs joined and lone surrogates as U+FFFD."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
