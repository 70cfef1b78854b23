"""Rows for training from any source that a recipe can name: packaged, local file, or hub."""

import difflib
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from llm2comp.data import catalog, files, hub
from llm2comp.data.files import BadRow, NumberedRow
from llm2comp.errors import UserError
from llm2comp.recipe import DataSource

logger = logging.getLogger("llm2comp")

SCORE = "score"
"""The only column that holds a number. All others hold text."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
"""`owner/name` or `owner/name:configuration`."""


def rows(
    source: DataSource, columns: Sequence[str], on_bad_row: str, optional: Sequence[str] = ()
) -> Iterator[dict[str, str]]:
    """Return an iterator over the rows of a source, under our column names.

    Args:
        source: a packaged source, a local .txt, .jsonl, .csv or .parquet file, or a dataset of the
            hub (`owner/name` or `owner/name:configuration`).
        columns: our names of the columns that each row must have (text, anchor, positive).
            `source.columns` maps them to the names in the source.
        on_bad_row: `fail` stops at the first bad row. `skip` leaves bad rows out and logs their
            number at the end. A row is bad if it cannot be read, lacks a column, holds a value
            that is blank, not a string or not valid Unicode, or has a score that is not a finite
            number.
        optional: our names of columns that are also read if `source.columns` maps them or the
            first good row has them. From then on, a row without them is bad.

    Returns:
        Rows that map our column names to text. No text is blank. A score is the text of a number.

    Raises:
        UserError: immediately, if the source does not exist, is for evaluation only, or cannot be
            downloaded. During iteration, if a file or the hub cannot be read, or, with `fail`, at
            the first bad row; the message is `FILE:LINE: reason`.
    """
    return _checked(_numbered(source), source, columns, on_bad_row, optional)


def _checked(
    numbered: Iterator[NumberedRow],
    source: DataSource,
    columns: Sequence[str],
    on_bad_row: str,
    optional: Sequence[str],
) -> Iterator[dict[str, str]]:
    # Both map our name of a column to its name in the source.
    wanted = {ours: source.columns.get(ours, ours) for ours in columns}
    possible = {ours: source.columns.get(ours, ours) for ours in optional}
    wanted |= {ours: theirs for ours, theirs in possible.items() if ours in source.columns}
    skipped = 0
    before_first_good_row = True
    try:
        for number, values in numbered:
            if before_first_good_row and isinstance(values, Mapping):
                wanted |= {
                    ours: theirs
                    for ours, theirs in possible.items()
                    if values.get(theirs) not in (None, "")
                }
            problem = _problem(values, wanted)
            if problem is None and isinstance(values, Mapping):
                before_first_good_row = False
                yield {ours: str(values[theirs]) for ours, theirs in wanted.items()}
            elif on_bad_row == "skip":
                skipped += 1
            else:
                raise UserError(
                    f"{source.source}:{number}: {problem}; correct the row or use --on-bad-row skip"
                )
    finally:
        if skipped:
            logger.warning("%s: skipped %d bad rows", source.source, skipped)


def _numbered(source: DataSource) -> Iterator[NumberedRow]:
    name = source.source
    if name in catalog.names():
        return _packaged(name)
    path = Path(name).expanduser()
    if path.exists() or path.suffix.lower() in files.READERS:
        return files.read(path)
    if HUB_ID.fullmatch(name):
        return hub.read(name, source.split)
    nearest = difflib.get_close_matches(name, catalog.names(), n=1, cutoff=0)[0]
    raise UserError(
        f"data source {name!r} is not a packaged source (nearest: {nearest!r}), not a local file "
        f"of {', '.join(files.READERS)}, and not a hub id of the form owner/name"
    )


def _packaged(name: str) -> Iterator[NumberedRow]:
    entry = catalog.entry(name)
    if not entry.trainable:
        usable = ", ".join(n for n in catalog.names() if catalog.entry(n).trainable)
        raise UserError(
            f"{name} ({entry.kind}) is for evaluation and is never trained on; use one of {usable}"
        )
    return enumerate(catalog.rows(name), start=1)


def _problem(values: Mapping[str, object] | BadRow, wanted: Mapping[str, str]) -> str | None:
    """Return what is wrong with a row, or None if it is good."""
    if isinstance(values, BadRow):
        return values.reason
    for ours, theirs in wanted.items():
        if theirs not in values:
            hint = "" if theirs != ours else f" (map it: columns: {{{ours}: ...}})"
            return f"no column {theirs!r}; there are {', '.join(map(str, values))}{hint}"
        value = values[theirs]
        if ours == SCORE:
            if not _is_number(value):
                return f"column {theirs!r} holds {value!r}, not a number"
            continue
        if not isinstance(value, str):
            return f"column {theirs!r} holds {type(value).__name__}, not a string"
        if not value.strip():
            return f"column {theirs!r} is empty"
        if not _is_unicode(value):
            return f"column {theirs!r} is not valid Unicode; save the file as UTF-8"
    return None


def _is_number(value: object) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(str(value)))
    except ValueError:
        return False


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
