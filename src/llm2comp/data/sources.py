"""Rows for training from any source that a recipe can name: packaged, local file, or hub."""

import difflib
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llm2comp.data import catalog, files, hub
from llm2comp.data.files import BadRow, NumberedRow
from llm2comp.errors import UserError
from llm2comp.recipe import DataSource
from llm2comp.utils.standard_input import STANDARD_INPUT

logger = logging.getLogger("llm2comp")

SCORE = "score"
"""The only column that holds a number. All others hold text."""
COLUMNS = ("text", "anchor", "positive", "negative", SCORE)
"""All columns that a stage may read."""
LISTS = ("positive", "negative")
"""The columns that may hold a list of texts."""
LOUD_SHARE = 0.5
"""If more than this share of the rows is bad, the source itself is probably not what was meant."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
"""`owner/name` or `owner/name:configuration`."""


def rows(
    source: DataSource,
    columns: Sequence[str],
    on_bad_row: str,
    optional: Sequence[str] = (),
    skipped: dict[str, int] | None = None,
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
            first good row has them. From then on, a row without them is bad. If the first good row
            does not have them, a row with them is bad.
        skipped: if given, gets the number of rows that were skipped, by source.

    Returns:
        Rows that map our column names to text. No text is blank. A score is the text of a number.
        No other column of the source is in them. If `positive` or `negative` is a list of texts,
        the row becomes as many rows as the longer of both has items. The i-th has the i-th positive
        and the i-th negative, and the shorter list begins again when it ends.

    Raises:
        UserError: immediately, if the source does not exist, is for evaluation only, or cannot be
            downloaded. During iteration, if a file or the hub cannot be read, with `fail` at the
            first bad row, and with `skip` at the end if all rows are bad. The message begins with
            `FILE:LINE` if a row is to blame.
    """
    wanted = _Columns.of(source, columns, optional)
    return _logged(_numbered(source, wanted.names), source.source, wanted, on_bad_row, skipped)


def require_good_row(
    source: DataSource, columns: Sequence[str], on_bad_row: str, optional: Sequence[str] = ()
) -> dict[str, str]:
    """Check that a source can be read, and return its first good row.

    Args:
        source: as `rows` takes it, like the other arguments.
        columns: our names of the columns that each row must have.
        on_bad_row: `fail` or `skip`.
        optional: our names of columns that are also read.

    Raises:
        UserError: if it cannot be read, or has no good row.
    """
    wanted = _Columns.of(source, columns, optional)
    numbered = _numbered(source, wanted.names)
    for row in _checked(numbered, source.source, wanted, on_bad_row, _Tally()):
        return row
    raise UserError(f"{source.source}: there are no rows in it")


@dataclass
class _Tally:
    """How many rows of a source were read and skipped, and why the first one was."""

    read: int = 0
    skipped: int = 0
    first: str = ""


@dataclass
class _Columns:
    """The columns that are read from a source: our names, and its names of them.

    Attributes:
        wanted: those that each row must have.
        optional: those that all rows have or none.
        settled: whether a good row has shown which of the optional ones the source has.
    """

    wanted: dict[str, str]
    optional: dict[str, str]
    settled: bool = field(default=False)

    @classmethod
    def of(cls, source: DataSource, columns: Sequence[str], optional: Sequence[str]) -> "_Columns":
        for ours in source.columns:
            if ours not in COLUMNS:
                nearest = difflib.get_close_matches(ours, COLUMNS, n=1, cutoff=0)[0]
                raise UserError(
                    f"{source.source}: columns maps {ours!r}, which is no column of ours; use one "
                    f"of {', '.join(COLUMNS)} (nearest: {nearest!r})"
                )
        theirs = {ours: source.columns.get(ours, ours) for ours in (*columns, *optional)}
        chosen = [ours for ours in theirs if ours in columns or ours in source.columns]
        return cls(
            {ours: theirs[ours] for ours in chosen},
            {ours: theirs[ours] for ours in optional if ours not in chosen},
        )

    @property
    def names(self) -> list[str]:
        """The source's names of all columns that may be read."""
        return [*self.wanted.values(), *self.optional.values()]

    def check(self, values: Mapping[str, object] | BadRow) -> str | None:
        """Return what is wrong with a row, or None if it is good."""
        if isinstance(values, BadRow):
            return values.reason
        given = {o: theirs for o, theirs in self.optional.items() if is_given(values.get(theirs))}
        if given and self.settled:
            theirs = next(iter(given.values()))
            return (
                f"has a {theirs!r}, and the rows before it have none; give every row one, or put "
                "those without into a source of their own"
            )
        problem = self._problem(values, self.wanted | given)
        if problem is None and not self.settled:
            self.wanted |= given
            self.optional = {o: t for o, t in self.optional.items() if o not in given}
            self.settled = True
        return problem

    def _problem(self, values: Mapping[str, object], wanted: Mapping[str, str]) -> str | None:
        for ours, theirs in wanted.items():
            if theirs not in values:
                return f"no column {theirs!r}; there are {', '.join(map(str, values))}" + (
                    f" (map it: columns: {{{ours}: ...}})" if theirs == ours else ""
                )
            problem = problem_of_value(values[theirs], ours)
            if problem:
                return f"column {theirs!r} {problem}"
        return None


def _logged(
    numbered: Iterator[NumberedRow],
    name: str,
    columns: _Columns,
    on_bad_row: str,
    skipped: dict[str, int] | None,
) -> Iterator[dict[str, str]]:
    """Yield the good rows, and log at the end how many others there were."""
    tally = _Tally()
    try:
        yield from _checked(numbered, name, columns, on_bad_row, tally)
    finally:
        if tally.skipped > LOUD_SHARE * tally.read:
            logger.error(
                "%s: MOST ROWS ARE BAD: skipped %d of %d; the first is %s",
                name,
                tally.skipped,
                tally.read,
                tally.first,
            )
        elif tally.skipped:
            logger.warning("%s: skipped %d bad rows of %d", name, tally.skipped, tally.read)
        if skipped is not None and tally.skipped:
            skipped[name] = skipped.get(name, 0) + tally.skipped


def _checked(
    numbered: Iterator[NumberedRow], name: str, columns: _Columns, on_bad_row: str, tally: _Tally
) -> Iterator[dict[str, str]]:
    for number, values in numbered:
        tally.read += 1
        problem = columns.check(values)
        if problem is None and isinstance(values, Mapping):
            yield from _expanded({o: values[theirs] for o, theirs in columns.wanted.items()})
            continue
        if on_bad_row != "skip":
            raise UserError(f"{name}:{number}: {problem}; correct the row or use --on-bad-row skip")
        tally.skipped += 1
        tally.first = tally.first or f"row {number}: {problem}"
    if tally.skipped and tally.skipped == tally.read:
        raise UserError(f"{name}: all {tally.read} rows are bad; the first is {tally.first}")


def _expanded(row: Mapping[str, object]) -> Iterator[dict[str, str]]:
    """Yield one row for each item of the longest list."""
    items = {name: value if isinstance(value, list) else [value] for name, value in row.items()}
    for index in range(max(map(len, items.values()), default=1)):
        yield {name: str(texts[index % len(texts)]) for name, texts in items.items()}


def _numbered(source: DataSource, columns: Sequence[str]) -> Iterator[NumberedRow]:
    name = source.source
    if name in catalog.names():
        return _packaged(name)
    path = Path(name).expanduser()
    if is_file(name):
        return files.read(path, columns)
    if HUB_ID.fullmatch(name):
        return hub.read(name, source.split)
    nearest = difflib.get_close_matches(name, catalog.names(), n=1, cutoff=0)[0]
    raise UserError(
        f"data source {name!r} is not a packaged source (nearest: {nearest!r}), not a local file "
        f"of {', '.join(files.READERS)}, and not a hub id of the form owner/name"
    )


def is_file(name: str) -> bool:
    """Return whether a source is standard input or a local file, which may be missing."""
    path = Path(name).expanduser()
    return name not in catalog.names() and (
        path == STANDARD_INPUT or path.exists() or path.suffix.lower() in files.READERS
    )


def _packaged(name: str) -> Iterator[NumberedRow]:
    entry = catalog.entry(name)
    if not entry.trainable:
        usable = ", ".join(n for n in catalog.names() if catalog.entry(n).trainable)
        raise UserError(
            f"{name} ({entry.kind}) is for evaluation and is never trained on; use one of {usable}"
        )
    return enumerate(catalog.rows(name), start=1)


def problem_of_value(value: object, ours: str) -> str | None:
    """Return what is wrong with the value of one of our columns, or None if it is good."""
    if ours == SCORE:
        return None if _is_number(value) else f"holds {value!r}, not a number"
    if isinstance(value, list) and ours in LISTS:
        problems = [_problem_of_text(item) for item in value]
        first = next((f"item {i}: {p}" for i, p in enumerate(problems, 1) if p), None)
        return first if value else "is an empty list"
    return _problem_of_text(value)


def _problem_of_text(value: object) -> str | None:
    if not isinstance(value, str):
        return f"holds {type(value).__name__}, not a string"
    if not value.strip():
        return "is empty"
    if not _is_unicode(value):
        return "is not valid Unicode; save the file as UTF-8"
    return "holds a NUL character" if files.NUL in value else None


def is_given(value: object) -> bool:
    """Return whether an optional column has a value in a row."""
    return value is not None and value != "" and value != []


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
