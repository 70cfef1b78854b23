"""Read all texts of a file to be encoded, also the empty ones.

In training data an empty row is a mistake. A file to be encoded keeps all its rows, so that row i
of the embeddings belongs to row i of the file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from llm2comp.data import files
from llm2comp.errors import UserError, listed

COLUMN = "text"
"""The column of the text, in all files but .txt."""


def read_texts(file: Path) -> Iterator[str]:
    """Yield the texts of a .txt (one text per line), .jsonl, .json, .csv or .parquet file.

    All but the first hold the texts in the column `text`. Lone surrogates, which JSON can express
    and no tokenizer accepts, become U+FFFD.

    Raises:
        UserError: if the file is missing, has another extension, or has a row without a text. The
            message names the file and the line.
    """
    return (text for _, text, _ in read_rows(file, [COLUMN]))


def read_rows(
    file: Path,
    columns: Sequence[str] | None = None,
    on_bad_row: Callable[[int, str], None] | None = None,
) -> Iterator[tuple[int, str, Mapping[str, object]]]:
    """Yield the number, the text and all values of each row of a file, as `read_texts` reads it.

    Args:
        file: the file.
        columns: names of the columns that are wanted; all by default.
        on_bad_row: called with the number of a row without a text, and why it has none; such a row
            is then left out.

    Raises:
        UserError: as `read_texts` does.
    """
    for number, row in files.read(file, columns):
        try:
            text = _text(row, file)
        except ValueError as error:
            if on_bad_row is None:
                raise UserError(f"{file}:{number}: {error}") from error
            on_bad_row(number, str(error))
            continue
        assert not isinstance(row, files.BadRow)
        yield number, text, row


def _text(row: Mapping[str, object] | files.BadRow, file: Path) -> str:
    """Return the text of a row.

    Raises:
        ValueError: if it has none; it says why.
    """
    if isinstance(row, files.BadRow):
        raise ValueError(row.reason)
    if COLUMN not in row:
        raise ValueError(f"no {COLUMN!r}; it has {listed(row)}")
    text = row[COLUMN]
    if not isinstance(text, str):
        raise ValueError(f"{COLUMN!r} is not a string but {type(text).__name__}")
    clean = replace_surrogates(text)
    # Only JSON has an escape for surrogates. Elsewhere they stand for bytes that are not UTF-8.
    if clean != text and files.kind_of(file) not in (".jsonl", ".json"):
        raise ValueError("not UTF-8; convert the file first")
    return clean


def require_texts(file: Path) -> None:
    """Check that a file can be read and has at least one text.

    Raises:
        UserError: if it cannot be read, or has none.
    """
    if next(read_texts(file), None) is None:
        raise UserError(f"{file}: there are no texts in it")


def require_id(given: object, where: str) -> str:
    """Return the id of a row as a string.

    Args:
        given: what the row has under `id`.
        where: the place of the row, for the message.

    Raises:
        UserError: if it is no string or integer, is blank, or has half a character.
    """
    if isinstance(given, bool) or not isinstance(given, int | str) or not str(given).strip():
        said = "there is none" if given is None else f"it is {given!r}"
        raise UserError(f"{where}: the id must be a string or an integer; {said}")
    if replace_surrogates(str(given)) != str(given):
        raise UserError(f"{where}: {given!r} has half a character; correct the row")
    return str(given)


def replace_surrogates(text: str) -> str:
    """Return the text with pairs of surrogates joined, and with U+FFFD for lone surrogates."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
