"""Read the texts of a file one after another, every row of it, empty ones too.

Unlike training data, where an empty row is a mistake, a file to be encoded
keeps all its rows, so that row i of the vectors is row i of the file.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llm2comp.errors import UserError

COLUMN = "text"
"""The column, or key, of structured files that holds the text."""


def read_texts(file: Path) -> Iterator[str]:
    """Yield the texts of a .txt (one a line), .jsonl, .csv or .parquet file.

    Structured files hold them under ``text``. Lone surrogates, which no
    tokenizer takes, become U+FFFD.

    Raises:
        UserError: if the file is missing, of another kind, not UTF-8, or has a
            row without a text; the message names file and line.
    """
    readers: dict[str, Callable[[Path], Iterator[str]]] = {
        ".txt": _read_txt,
        ".jsonl": _read_jsonl,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    if file.suffix not in readers:
        raise UserError(f"{file}: texts are read from {', '.join(readers)} files")
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        yield from map(replace_surrogates, readers[file.suffix](file))
    except pa.ArrowException as error:
        raise UserError(f"{file}: {' '.join(str(error).split())}") from error


def replace_surrogates(text: str) -> str:
    """Return the text with surrogate pairs joined and lone surrogates as U+FFFD."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{file}:{number}: not UTF-8; convert the file first") from error


def _read_txt(file: Path) -> Iterator[str]:
    for _, line in _lines(file):
        yield line.removesuffix("\n").removesuffix("\r")


def _read_jsonl(file: Path) -> Iterator[str]:
    for number, line in _lines(file):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}:{number}: broken JSON ({error})") from error
        yield _text(row, f"{file}:{number}")


def _read_csv(file: Path) -> Iterator[str]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses texts over 128 KiB
    reader = csv.DictReader(line for _, line in _lines(file))
    try:
        for row in reader:
            yield _text(row, f"{file}:{reader.line_num}")
    except csv.Error as error:
        raise UserError(f"{file}:{reader.line_num}: {error}") from error


def _read_parquet(file: Path) -> Iterator[str]:
    table = pq.ParquetFile(file)
    if COLUMN not in table.schema_arrow.names:
        raise UserError(
            f"{file}: no column {COLUMN!r}; it has {', '.join(table.schema_arrow.names)}"
        )
    number = 0
    for batch in table.iter_batches(batch_size=256, columns=[COLUMN]):
        for text in batch.column(0).to_pylist():
            number += 1
            yield _text({COLUMN: text}, f"{file}: row {number}")


def _text(row: object, place: str) -> str:
    if not isinstance(row, dict) or COLUMN not in row:
        held = f"; it has {', '.join(map(str, row))}" if isinstance(row, dict) else ""
        raise UserError(f"{place}: no {COLUMN!r}{held}")
    text = row[COLUMN]
    if not isinstance(text, str):
        raise UserError(f"{place}: {COLUMN!r} is not a string but {type(text).__name__}")
    return text
