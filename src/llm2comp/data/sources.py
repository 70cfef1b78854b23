"""Rows for training from any source that a recipe can name: packaged, local file, or hub."""

import difflib
import logging
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm2comp.data import catalog, files, hub
from llm2comp.data.drawn.left_out import REASONS, LeftOut
from llm2comp.data.files import BadRow, NumberedRow
from llm2comp.data.formats import parts, saved
from llm2comp.data.formats.cells import Cells
from llm2comp.data.formats.expand import expanded
from llm2comp.data.formats.layouts import LISTS, PROMPT, Layout, recognise
from llm2comp.data.formats.values import is_number, problem_of_text
from llm2comp.errors import UserError, counted, listed
from llm2comp.recipe_parts import DataSource

logger = logging.getLogger("llm2comp")

SCORE = "score"
"""The only column that holds a number. All others hold text."""
NEGATIVE = "negative"
"""The only column that some rows of a source may have, and others not."""
COLUMNS = ("text", "anchor", "positive", NEGATIVE, SCORE)
"""All columns that a stage may read."""
LOUD_SHARE = 0.5
"""If more than this share of the rows is bad, the source itself is probably not what was meant."""

PlacedRow = tuple[str, int, Mapping[str, object] | BadRow]
"""The file of a row, its number there, and its values by column."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
"""`owner/name` or `owner/name:configuration`."""


def rows(
    source: DataSource,
    columns: Sequence[str],
    on_bad_row: str,
    optional: Sequence[str] = (),
    left_out: LeftOut | None = None,
    seed: str | None = None,
    *,
    whole: bool = False,
) -> Iterator[dict[str, Any]]:
    """Return an iterator over the rows of a source, under our column names.

    Args:
        source: a packaged source, local files, or a dataset of the hub, as a recipe names them.
        columns: our names of the columns that each row must have (text, anchor, positive).
            `source.columns` maps them to the names in the source. Without it, pairs of other tools
            are recognised by their columns (`llm2comp.data.formats.layouts`), and the log says so.
        on_bad_row: `fail` stops at the first bad row. `skip` leaves bad rows out and logs their
            number at the end. A row is bad if it cannot be read, lacks a column, holds a value
            that is blank, not a string or not valid Unicode, or has a score that is not a finite
            number.
        optional: our names of columns that are also read if `source.columns` maps them or the
            first good row has them. From then on, a row without them is bad. If the first good row
            does not have them, a row with them is bad. Only `negative` may be in some rows, and
            not in others.
        left_out: counts what is left out of the source; by default, the log says it at the end.
        seed: if given, the files of a source of several are read in an order that depends on it.
        whole: read all files of a folder, also if their names are like those of splits.

    Returns:
        Rows that map our column names to text. No text is blank. A score is the text of a number.
        No other column of the source is in them. A row with several positives or negatives becomes
        several rows with one positive each (`llm2comp.data.formats.expand`): `negative` is then a
        list of at most `source.negatives` texts, and `positives` a list of all positives. An anchor
        that begins with a prompt of its own row has it in `prompt` too.

    Raises:
        UserError: immediately, if the source does not exist, is for evaluation only, or cannot be
            downloaded. During iteration, if a file or the hub cannot be read, with `fail` at the
            first bad row, and with `skip` at the end if all rows are bad. The message begins with
            `FILE:LINE` if a row is to blame.
    """
    wanted = _Columns.of(source, columns, optional, announced=True)
    numbered = _numbered(source, wanted, seed, whole=whole)
    return _logged(numbered, source, wanted, on_bad_row, left_out)


def require_good_row(
    source: DataSource, columns: Sequence[str], on_bad_row: str, optional: Sequence[str] = ()
) -> dict[str, Any]:
    """Check that a source can be read, and return its first good row.

    Args:
        source: as `rows` takes it, like the other arguments.
        columns: our names of the columns that each row must have.
        on_bad_row: `fail` or `skip`.
        optional: our names of columns that are also read.

    Raises:
        UserError: if it cannot be read, or has no good row.
    """
    wanted = _Columns.of(source, columns, optional, announced=False)
    numbered = _numbered(source, wanted, None)
    tally, left_out = _Tally(), LeftOut()
    for row in _checked(numbered, source, wanted, on_bad_row, tally, left_out):
        return row
    if tally.read:
        what = " and ".join(REASONS[reason][1] for reason in left_out.counts)
        raise UserError(f"{source.source}: no row is left, because all have {what}")
    raise UserError(f"{source.source}: there are no rows in it")


@dataclass
class _Tally:
    """How many rows of a source were read and skipped, and why the first one was."""

    read: int = 0
    skipped: int = 0
    first: str = ""


@dataclass
class _Columns:
    """The columns that are read from a source.

    Attributes:
        source: the source.
        wanted: our names of those that each row must have.
        optional: our names of those that all rows have or none.
        announced: whether the log says which tool's rows these are.
        layout: the source's names; None until the names of its columns are known.
        settled: whether a good row has shown which of the optional ones the source has.
        warned: whether the log says that negatives are in another column.
    """

    source: DataSource
    wanted: list[str]
    optional: list[str]
    announced: bool
    layout: Layout | None = None
    settled: bool = field(default=False)
    warned: bool = field(default=False)

    @classmethod
    def of(
        cls,
        source: DataSource,
        columns: Sequence[str],
        optional: Sequence[str],
        *,
        announced: bool,
    ) -> "_Columns":
        for ours in source.columns:
            if ours not in COLUMNS:
                nearest = difflib.get_close_matches(ours, COLUMNS, n=1, cutoff=0)[0]
                raise UserError(
                    f"{source.source}: columns maps {ours!r}, which is no column of ours; use one "
                    f"of {', '.join(COLUMNS)} (nearest: {nearest!r})"
                )
        chosen = [one for one in (*columns, *optional) if one in columns or one in source.columns]
        return cls(source, chosen, [one for one in optional if one not in chosen], announced)

    def names(self, names: Sequence[str]) -> list[str]:
        """Return those of the source's columns that are read."""
        return self._layout(names).among(names)

    def read(self, row: Mapping[str, object]) -> dict[str, object]:
        """Return the values of a row under our names."""
        return self._layout(list(row)).read(row)

    def lists(self, names: Sequence[str]) -> list[str]:
        """Return those of the source's columns that may hold lists."""
        return self._layout(names).lists(names)

    def prompt(self, row: Mapping[str, object]) -> str:
        """Return what a row puts before its anchor."""
        return self.layout.prompt_of(row) if self.layout is not None else ""

    def check(self, row: Mapping[str, object], values: Mapping[str, object]) -> str | None:
        """Return what is wrong with a row and its values under our names, or None if it is good."""
        assert self.layout is not None
        if self.source.query_instruction and self.layout.prompt_of(row):
            return (
                f"has a {self.layout.prompt!r} before the query, and the source a "
                "query_instruction; remove one of them, or map the columns to leave prompts out"
            )
        given = [ours for ours in self.optional if is_given(values.get(ours))]
        uneven = [ours for ours in given if ours != NEGATIVE]
        if uneven and self.settled:
            return (
                f"has a {self._theirs(uneven[0])!r}, and the rows before it have none; give every "
                "row one, or put those without into a source of their own"
            )
        problem = self._problem(row, values, [*self.wanted, *given])
        if problem is None and not self.settled:
            self.wanted += uneven
            self.optional = [ours for ours in self.optional if ours not in uneven]
            self.settled = True
        return problem

    def _problem(
        self, row: Mapping[str, object], values: Mapping[str, object], wanted: Sequence[str]
    ) -> str | None:
        for ours in wanted:
            theirs = self._theirs(ours)
            if ours not in values:
                mappable = theirs == ours and self.layout is not None and not self.layout.tool
                return f"no column {theirs!r}; there are {listed(row)}" + (
                    f" (map it: columns: {{{ours}: ...}})" if mappable else ""
                )
            if ours == NEGATIVE and not is_given(values[ours]):
                continue
            problem = problem_of_value(values[ours], ours)
            if problem:
                return f"column {theirs!r} {problem}"
        return None

    def chosen(self, values: Mapping[str, object]) -> list[str]:
        """Return our names of the columns of a good row."""
        given = [one for one in self.optional if is_given(values.get(one))]
        return [one for one in [*self.wanted, *given] if is_given(values[one])]

    def _theirs(self, ours: str) -> str:
        assert self.layout is not None
        return self.layout.columns[ours]

    def _layout(self, names: Sequence[str]) -> Layout:
        """Return the layout, which the columns of the first good row decide."""
        if self.layout is None or not (self.settled or self.layout.tool):
            found = None
            if "anchor" in self.wanted and not self.source.columns:
                found = recognise(names)
            mapped = self.source.columns if found is None else found.columns
            columns = {one: mapped.get(one, one) for one in (*self.wanted, *self.optional)}
            self.layout = Layout(columns) if found is None else replace(found, columns=columns)
            if found is not None and self.announced:
                logger.info("%s: %s", self.source.source, found)
            self._tell_of_other_negatives(names)
        return self.layout

    def _tell_of_other_negatives(self, names: Sequence[str]) -> None:
        """Warn once if a column that is not read seems to have hard negatives."""
        assert self.layout is not None
        columns = None if NEGATIVE in self.source.columns else self.layout.overlooked(names)
        if self.announced and columns and not self.warned:
            self.warned = True
            logger.warning(
                "%s: hard negatives are read from a column %r, which it has not; "
                "`columns: %s` reads those that it has",
                self.source.source,
                self.layout.columns[NEGATIVE],
                columns,
            )


def _logged(
    numbered: Iterator[PlacedRow],
    source: DataSource,
    columns: _Columns,
    on_bad_row: str,
    left_out: LeftOut | None,
) -> Iterator[dict[str, Any]]:
    """Yield the good rows, and log at the end how many others there were."""
    tally, name, others = _Tally(), source.source, left_out or LeftOut()
    try:
        yield from _checked(numbered, source, columns, on_bad_row, tally, others)
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
            bad = counted(tally.skipped, "bad row")
            logger.warning("%s: skipped %s of %d", name, bad, tally.read)
        others.count("skipped", name, tally.skipped)
        if left_out is None:
            others.log()


def _checked(
    numbered: Iterator[PlacedRow],
    source: DataSource,
    columns: _Columns,
    on_bad_row: str,
    tally: _Tally,
    left_out: LeftOut,
) -> Iterator[dict[str, Any]]:
    name = source.source
    for file, number, row in numbered:
        tally.read += 1
        if isinstance(row, BadRow):
            problem: str | None = row.reason
        else:
            values = columns.read(row)
            problem = columns.check(row, values)
            if problem is None:
                chosen = {ours: values[ours] for ours in columns.chosen(values)}
                if prompt := columns.prompt(row):
                    chosen[PROMPT] = prompt
                # A score says how alike a pair is, and a teacher what vectors a text has.
                keep_same = SCORE in chosen or source.teacher is not None
                yield from expanded(chosen, source, left_out, keep_same=keep_same)
                continue
        if on_bad_row != "skip":
            raise UserError(
                f"{file}:{number}: {problem}; correct the row, or set on_bad_row=skip in a recipe"
            )
        tally.skipped += 1
        place = f"row {number}" if file == name else f"{file}:{number}"
        tally.first = tally.first or f"{place}: {problem}"
    if tally.skipped and tally.skipped == tally.read:
        which = "the only row is" if tally.read == 1 else f"all {tally.read} rows are"
        raise UserError(f"{name}: {which} bad; the first is {tally.first}")


def _numbered(
    source: DataSource, columns: _Columns, seed: str | None, *, whole: bool = False
) -> Iterator[PlacedRow]:
    name = source.source
    packaged = name in catalog.names()
    local = None
    if not packaged:
        split = None if whole else source.split
        local = parts.local_files(name, split, announced=columns.announced)
    if source.revision and (packaged or local):
        raise UserError(f"{name}: is not on the hub; revision is for datasets of the hub")
    if source.split != "train" and (packaged or (local and not Path(name).expanduser().is_dir())):
        raise UserError(
            f"{name}: has no splits; split {source.split!r} is for datasets of the hub and for "
            "folders whose files are named after splits. Name the files of the split, and leave "
            "split out"
        )
    if packaged:
        return ((name, *row) for row in _packaged(name))
    if local is not None:
        if seed is not None:
            random.Random(seed.encode("utf-8", errors="surrogatepass")).shuffle(local)
        return _of_files(local, source, columns)
    if HUB_ID.fullmatch(name):
        rows = hub.read(name, source.split, source.revision, columns.names)
        return ((name, *row) for row in rows)
    nearest = difflib.get_close_matches(name, catalog.names(), n=1, cutoff=0)[0]
    raise UserError(
        f"data source {name!r} is not a packaged source (nearest: {nearest!r}), not a local file "
        f"of {', '.join(files.READERS)}, and not a hub id of the form owner/name"
    )


def _of_files(paths: list[Path], source: DataSource, columns: _Columns) -> Iterator[PlacedRow]:
    cells = Cells(source.source, columns.lists, announced=columns.announced)
    for path in paths:
        if saved.is_saved(path):
            rows = saved.read(path, source.split, columns.names)
        else:
            names = files.column_names(path)
            rows = files.read(path, None if names is None else columns.names(names))
            if files.kind_of(path) == ".csv":
                rows = cells.read(rows)
        shown = str(path) if len(paths) > 1 else source.source
        yield from ((shown, *row) for row in rows)


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
        return None if is_number(value) else f"holds {value!r}, not a number"
    if isinstance(value, list) and ours in LISTS:
        problems = [problem_of_text(item) for item in value]
        first = next((f"item {i}: {p}" for i, p in enumerate(problems, 1) if p), None)
        return first if value else "is an empty list"
    return problem_of_text(value)


def is_given(value: object) -> bool:
    """Return whether an optional column has a value in a row."""
    return value is not None and value != "" and value != []
