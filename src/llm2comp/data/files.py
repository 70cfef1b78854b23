"""Read local text files row by row, without loading a whole file.

Each reader yields `(number, columns)`. The number is that of the line as an editor counts it, or
that of the row in a Parquet file. A row that cannot be read is yielded as a `BadRow`, and reading
continues with the next one.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llm2comp.errors import UserError, one_line
from llm2comp.utils.standard_input import STANDARD_INPUT, open_bytes


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read, with the reason."""

    reason: str


NumberedRow = tuple[int, Mapping[str, object] | BadRow]
"""The number of a row, and its values by column."""


def read(path: Path) -> Iterator[NumberedRow]:
    """Yield the rows of a .txt, .jsonl, .csv or .parquet file, or of standard input (`-`).

    Each line of a .txt file and of standard input is one row with the column `text`.

    Raises:
        UserError: if the file is missing, cannot be read, or has another extension.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: is a pipe or a device; name a file, or - for standard input")
    reader = _read_text if path == STANDARD_INPUT else READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: cannot read {path.suffix or 'this'}; use {', '.join(READERS)}")
    try:
        yield from reader(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines with their numbers, without line breaks.

    Bytes that are not UTF-8 become lone surrogates. So they make only their own row bad, when that
    row is checked.
    """
    with open_bytes(path) as file:  # text mode would also split lines at U+2028 and the like
        for number, line in enumerate(file, start=1):
            text = line.decode("utf-8", errors="surrogateescape").rstrip("\r\n")
            yield number, text.removeprefix("\ufeff") if number == 1 else text


def _read_text(path: Path) -> Iterator[NumberedRow]:
    for number, line in _lines(path):
        yield number, {"text": line}


def _read_jsonl(path: Path) -> Iterator[NumberedRow]:
    for number, line in _lines(path):
        try:
            row: object = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, BadRow(f"broken JSON ({error})" if line.strip() else "empty line")
        else:
            yield number, row if isinstance(row, dict) else BadRow("a JSON object was expected")


def _read_csv(path: Path) -> Iterator[NumberedRow]:
    csv.field_size_limit(2**31 - 1)  # by default, cells above 131,072 characters are errors
    reader = csv.reader((f"{line}\n" for _, line in _lines(path)), strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, BadRow(f"broken CSV ({error})")
            continue
        if header is None:
            header = cells
        elif len(cells) == len(header):
            yield number, dict(zip(header, cells, strict=True))
        else:
            yield number, BadRow(f"{len(cells)} fields where the header has {len(header)}")


def _read_parquet(path: Path) -> Iterator[NumberedRow]:
    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowException as error:
        raise UserError(f"{path}: is not a readable Parquet file: {one_line(error)}") from error


READERS: dict[str, Callable[[Path], Iterator[NumberedRow]]] = {
    ".txt": _read_text,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""The reader of each file extension."""
