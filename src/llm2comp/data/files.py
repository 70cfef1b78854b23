"""Read local text files row by row, without ever holding one whole.

Each reader yields ``(number, values)``: the number of the line (of the row, in
Parquet) as an editor counts it, and the columns found there. A row that cannot
be read is yielded as a ``BadRow``, and reading goes on behind it.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llm2comp.errors import UserError


@dataclass(frozen=True)
class BadRow:
    """Why a row could not be read."""

    reason: str


Numbered = tuple[int, Mapping[str, object] | BadRow]


def read(path: Path) -> Iterator[Numbered]:
    """Yield the rows of a .txt (column ``text``), .jsonl, .csv or .parquet file.

    Raises:
        UserError: if the file is missing, unreadable, or of another kind.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: cannot read {path.suffix or 'this'}; use {', '.join(READERS)}")
    try:
        yield from reader(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield numbered lines without their ends.

    Bytes that are not UTF-8 become lone surrogates, so that they spoil only
    their own row; whoever checks the row sees them.
    """
    with path.open("rb") as file:  # in text mode U+2028 and the like could split a line
        for number, line in enumerate(file, start=1):
            text = line.decode("utf-8", errors="surrogateescape").rstrip("\r\n")
            yield number, text.removeprefix("\ufeff") if number == 1 else text


def _text(path: Path) -> Iterator[Numbered]:
    for number, line in _lines(path):
        yield number, {"text": line}


def _jsonl(path: Path) -> Iterator[Numbered]:
    for number, line in _lines(path):
        try:
            row: object = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, BadRow(f"broken JSON ({error})" if line.strip() else "empty line")
        else:
            yield number, row if isinstance(row, dict) else BadRow("a JSON object was expected")


def _csv(path: Path) -> Iterator[Numbered]:
    csv.field_size_limit(2**31 - 1)  # its default refuses texts beyond 131,072 characters
    reader = csv.reader((f"{line}\n" for _, line in _lines(path)), strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, BadRow(f"broken CSV ({error})")
            continue
        if header is None:
            header = fields
        elif len(fields) == len(header):
            yield number, dict(zip(header, fields, strict=True))
        else:
            yield number, BadRow(f"{len(fields)} fields where the header has {len(header)}")


def _parquet(path: Path) -> Iterator[Numbered]:
    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowException as error:
        raise UserError(f"{path}: is not a readable Parquet file: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


READERS: dict[str, Callable[[Path], Iterator[Numbered]]] = {
    ".txt": _text,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}
