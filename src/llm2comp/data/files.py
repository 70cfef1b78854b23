"""Read local text files row by row. Only a JSON array is loaded as a whole.

Each reader yields `(number, columns)`. The number is that of the line as an editor counts it, or
that of the row in a Parquet file. A row that cannot be read is yielded as a `BadRow`, and reading
continues with the next one. A file in another encoding than UTF-8 is refused as a whole.
"""

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llm2comp.errors import UserError, counted, one_line
from llm2comp.utils.standard_input import STANDARD_INPUT, open_bytes

NUL = "\0"
JSON_SPACE = re.compile(r"[ \t\n\r]*")
OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Encodings by the bytes with which a file in them begins; the mark of UTF-32 begins like UTF-16's.
"""
NUL_SHARE = 0.05
"""A file whose first bytes are NUL to this share is UTF-16 or no text. Half of English UTF-16 is.
"""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""The codecs of Arrow by the ending of a file's name."""
DECOMPRESSED_BYTES = 1 << 16
"""Bytes that are decompressed at once."""
PARQUET_ROWS = 1024
"""Rows of a Parquet file that are in memory at once."""


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read, with the reason."""

    reason: str


NumberedRow = tuple[int, Mapping[str, object] | BadRow]
"""The number of a row, and its values by column."""

HOLDS_NUL = BadRow("holds a NUL byte, so it is not UTF-8 text; save the file as UTF-8")


def read(path: Path, columns: Sequence[str] | None = None) -> Iterator[NumberedRow]:
    """Yield the rows of a .txt, .jsonl, .json, .csv or .parquet file, or of standard input (`-`).

    Each line of a .txt file and of standard input is one row with the column `text`. A .json file
    is an array of objects, or has one object a line as .jsonl has. All but Parquet files may be
    compressed, with .gz or .zst at the end of their name.

    Args:
        path: the file.
        columns: names of the columns that are wanted; all by default. A Parquet file holds each
            column by itself, so the others are not read from it, and their value is None.

    Raises:
        UserError: if the file is missing, cannot be read, is not in UTF-8, has another extension,
            or has two columns of one name.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: is a pipe or a device; name a file, or - for standard input")
    kind = kind_of(path)
    if kind not in READERS:
        raise UserError(f"{path}: cannot read {path.suffix or 'this'}; use {', '.join(READERS)}")
    try:
        yield from READERS[kind](path, columns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {one_line(error.strerror or error)}") from error


def kind_of(path: Path) -> str:
    """Return the extension of a file without that of its compression, as `READERS` has it."""
    if path == STANDARD_INPUT:
        return ".txt"
    suffix = path.suffix.lower()
    if suffix not in COMPRESSIONS:
        return suffix
    inner = Path(path.stem).suffix.lower()
    return inner if inner != ".parquet" else inner + suffix  # which nobody writes


def _open(path: Path) -> io.BufferedReader:
    """Open a file, which may be compressed, or standard input."""
    codec = COMPRESSIONS.get(path.suffix.lower())
    if codec is None:
        return open_bytes(path)
    stream = pa.CompressedInputStream(path.open("rb"), codec)
    return io.BufferedReader(stream, DECOMPRESSED_BYTES)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines with their numbers, without line breaks.

    Bytes that are not UTF-8 become lone surrogates. So they make only their own row bad, when that
    row is checked.
    """
    with _open(path) as file:  # text mode would also split lines at U+2028 and the like
        _require_utf8(path, file.peek())
        for number, line in enumerate(file, start=1):
            text = line.decode("utf-8", errors="surrogateescape").rstrip("\r\n")
            yield number, text.removeprefix("\ufeff") if number == 1 else text


def _require_utf8(path: Path, start: bytes) -> None:
    """Refuse a file whose first bytes are those of another encoding.

    Its rows must not be judged one by one: many of them would be skipped, or read as NULs.
    """
    for mark, encoding in OTHER_ENCODINGS.items():
        if start.startswith(mark):
            raise UserError(f"{path}: is in {encoding}; save it as UTF-8")
    if start.count(0) > NUL_SHARE * len(start):
        raise UserError(
            f"{path}: holds NUL bytes, as files in UTF-16 do and files that are not text; save it "
            "as UTF-8"
        )


def _read_text(path: Path, _: Sequence[str] | None) -> Iterator[NumberedRow]:
    for number, line in _lines(path):
        yield number, HOLDS_NUL if NUL in line else {"text": line}


def _read_jsonl(path: Path, _: Sequence[str] | None) -> Iterator[NumberedRow]:
    for number, line in _lines(path):
        try:
            row: object = _JSON.decode(line)
        except (ValueError, RecursionError) as error:
            broken = BadRow(f"broken JSON ({error})" if line.strip() else "empty line")
            yield number, HOLDS_NUL if NUL in line else broken
        else:
            yield number, row if isinstance(row, dict) else BadRow("a JSON object was expected")


def _with_distinct_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"the key {_repeated(key for key, _ in pairs)[0]!r} is there twice")
    return row


_JSON = json.JSONDecoder(object_pairs_hook=_with_distinct_keys)


def _read_json(path: Path, columns: Sequence[str] | None) -> Iterator[NumberedRow]:
    """Read an array of objects, each with the line in which it begins, or else as JSON Lines."""
    text = "\n".join(line for _, line in _lines(path))
    place = _after_space(text, 0)
    if not text.startswith("[", place):
        yield from _read_jsonl(path, columns)
        return
    line, upto, closing = 1, 0, "]"
    while not text.startswith(closing, place := _after_space(text, place + 1)):
        line, upto = line + text.count("\n", upto, place), place
        try:
            row, place = _JSON.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            # What comes after it in the array cannot be told apart.
            reason = HOLDS_NUL.reason if NUL in text else f"broken JSON ({error})"
            raise UserError(f"{path}:{line}: {reason}") from error
        yield line, row if isinstance(row, dict) else BadRow("a JSON object was expected")
        place = _after_space(text, place)
        if not text.startswith((",", closing), place):
            line += text.count("\n", upto, place)
            raise UserError(f"{path}:{line}: broken JSON (a comma or ] is missing)")
        if text.startswith(closing, place):
            break
    rest = _after_space(text, place + 1)
    if rest < len(text):
        line = text.count("\n", 0, rest) + 1
        raise UserError(f"{path}:{line}: there is more after the end of the JSON array")


def _after_space(text: str, start: int) -> int:
    """Return the place of the first character that JSON does not skip."""
    match = JSON_SPACE.match(text, start)
    return match.end() if match else start


def _read_csv(path: Path, _: Sequence[str] | None) -> Iterator[NumberedRow]:
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
        if not cells:  # a blank line, as other readers skip it too
            continue
        if header is None:
            header = cells
            # Spreadsheets add columns without a name, and nobody can ask for those.
            _require_distinct(f"{path}:{number}", filter(str.strip, header))
        elif len(cells) != len(header):
            fields = counted(len(cells), "field")
            yield number, BadRow(f"{fields} where the header has {len(header)}")
        elif any(NUL in cell for cell in cells):
            yield number, HOLDS_NUL
        else:
            yield number, dict(zip(header, cells, strict=True))


def _read_parquet(path: Path, columns: Sequence[str] | None) -> Iterator[NumberedRow]:
    number = 0
    with _parquet_errors(path), pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        _require_distinct(str(path), (n for n in names if columns is None or n in columns))
        read = names if columns is None else [name for name in names if name in columns]
        unread: dict[str, object] = dict.fromkeys(names)
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=read):
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}: has a text after row {number} that is not UTF-8"
                ) from error
            for row in rows:
                number += 1
                yield number, unread | row


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    """Turn the errors of a damaged file into one line."""
    try:
        yield
    except pa.ArrowException as error:
        raise UserError(f"{path}: is not a readable Parquet file: {one_line(error)}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {one_line(error.strerror or error)}") from error


def _require_distinct(where: str, names: Iterator[str]) -> None:
    repeated = _repeated(names)
    if repeated:
        raise UserError(f"{where}: there are two columns {repeated[0]!r}; rename or remove one")


def _repeated(names: Iterator[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


READERS: dict[str, Callable[[Path, Sequence[str] | None], Iterator[NumberedRow]]] = {
    ".txt": _read_text,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""The reader of each file extension, before which no extension of a compression stands."""


def column_names(path: Path) -> list[str] | None:
    """Return the names of the columns of a file that can be read column by column, or None."""
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return None
    with _parquet_errors(path), pq.ParquetFile(path) as file:
        names: list[str] = file.schema_arrow.names
        return names
