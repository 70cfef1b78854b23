"""Rows to train on, from wherever a recipe's data source points: by name, by path, by hub id."""

import difflib
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from llm2comp.data import catalog, files, hub
from llm2comp.data.files import BadRow
from llm2comp.errors import UserError
from llm2comp.recipe import DataSource

logger = logging.getLogger("llm2comp")

SCORE = "score"
"""The one column that holds a number."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def rows(
    source: DataSource, columns: Sequence[str], on_bad_row: str, optional: Sequence[str] = ()
) -> Iterator[dict[str, str]]:
    """Stream the rows of ``source`` with our column names.

    Args:
        source: a packaged source, a local .txt, .jsonl, .csv or .parquet, or a hub dataset
            (``owner/name``, or ``owner/name:configuration``).
        columns: our names of the columns wanted (text, anchor, positive); ``source.columns``
            maps them to the source's own names.
        on_bad_row: ``fail``, or ``skip`` to count bad rows and log their number at the end.
        optional: columns taken too, if the first good row has them or they are mapped; from
            then on a row without them is bad.

    Returns:
        Rows of column name to text; no text is blank, and ``score`` spells a number.

    Raises:
        UserError: at once, if the source is unknown, for evaluation only, or a package that
            cannot be fetched; while reading, if a file or the hub fails and, under ``fail``, at
            the first bad row (not a row, a column missing, not a string, blank, not Unicode, a
            score that is no finite number),
            as ``FILE:LINE: what``.
    """
    return _checked(_numbered(source), source, columns, on_bad_row, optional)


def _checked(
    numbered: Iterator[files.Numbered],
    source: DataSource,
    columns: Sequence[str],
    on_bad_row: str,
    optional: Sequence[str],
) -> Iterator[dict[str, str]]:
    wanted = {ours: source.columns.get(ours, ours) for ours in columns}
    extra = {ours: source.columns.get(ours, ours) for ours in optional}
    wanted |= {ours: theirs for ours, theirs in extra.items() if ours in source.columns}
    skipped = 0
    first = True
    try:
        for number, values in numbered:
            if first and isinstance(values, Mapping):
                wanted |= {o: t for o, t in extra.items() if values.get(t) not in (None, "")}
            problem = _problem(values, wanted)
            if problem is None and isinstance(values, Mapping):
                first = False
                yield {ours: str(values[theirs]) for ours, theirs in wanted.items()}
            elif on_bad_row == "skip":
                skipped += 1
            else:
                raise UserError(
                    f"{source.source}:{number}: {problem}; mend the row or use --on-bad-row skip"
                )
    finally:
        if skipped:
            logger.warning("%s: skipped %d bad rows", source.source, skipped)


def _numbered(source: DataSource) -> Iterator[files.Numbered]:
    name = source.source
    if name in catalog.names():
        return _packaged(name)
    path = Path(name).expanduser()
    if path.exists() or path.suffix.lower() in files.READERS:
        return files.read(path)
    if _HUB_ID.fullmatch(name):
        return hub.read(name, source.split)
    nearest = difflib.get_close_matches(name, catalog.names(), n=1, cutoff=0)[0]
    raise UserError(
        f"data source {name!r} is no packaged source (nearest: {nearest!r}), no local file of "
        f"{', '.join(files.READERS)}, and no hub id of the form owner/name"
    )


def _packaged(name: str) -> Iterator[files.Numbered]:
    entry = catalog.entry(name)
    if not entry.trainable:
        usable = ", ".join(n for n in catalog.names() if catalog.entry(n).trainable)
        raise UserError(
            f"{name} ({entry.kind}) is for evaluation and is never trained on; use one of {usable}"
        )
    return enumerate(catalog.rows(name), start=1)


def _problem(values: Mapping[str, object] | BadRow, wanted: Mapping[str, str]) -> str | None:
    """Say what is wrong with a row, or None."""
    if isinstance(values, BadRow):
        return values.reason
    for ours, theirs in wanted.items():
        if theirs not in values:
            hint = "" if theirs != ours else f" (map it: columns: {{{ours}: ...}})"
            return f"no column {theirs!r}; there are {', '.join(map(str, values))}{hint}"
        text = values[theirs]
        if ours == SCORE:
            if not _is_number(text):
                return f"column {theirs!r} holds {text!r}, not a number"
            continue
        if not isinstance(text, str):
            return f"column {theirs!r} holds {type(text).__name__}, not a string"
        if not text.strip():
            return f"column {theirs!r} is empty"
        if not _is_unicode(text):
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
