"""Read a corpus for an index: once to check all of it, and then row by row."""

import glob
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llm2comp.data import files, text_files
from llm2comp.data.formats import saved
from llm2comp.data.formats.parts import local_files
from llm2comp.errors import UserError, counted
from llm2comp.retrieval.rows import ID, Kinds, Row, from_csv, row_of
from llm2comp.utils.standard_input import STANDARD_INPUT

logger = logging.getLogger("llm2comp")


@dataclass
class Corpus:
    """Files with the rows of an index. All of them have been read once, so no row is bad.

    Attributes:
        name: a file, a folder, a pattern, or `-`.
        files: that are read, with the names by which they are shown, and those in ids.
        total: number of rows with a text.
        kinds: what the columns of metadata hold.
    """

    name: str
    files: list[tuple[Path, str, str]]
    total: int = 0
    kinds: Kinds = field(default_factory=Kinds)

    @classmethod
    def survey(cls, name: str, home: Path = Path()) -> "Corpus":
        """Read a corpus and check it, so that nothing stops the work in its middle.

        Args:
            name: a file, a folder, a pattern, or `-`.
            home: folder of the index's folder. The id of a row without one has the path of its
                file from there, or its absolute path if it is elsewhere.

        Raises:
            UserError: if a file cannot be read, a row has no text or a bad id, an id is there
                twice, some rows have ids and others none, a column has values of several types, or
                there is no text.
        """
        inside = home.resolve()
        corpus = cls(name, [(*one, _name_in_ids(one[0], inside)) for one in _files(name)])
        corpus.kinds.lenient = any(_is_csv(file) for file, *_ in corpus.files)
        ids: set[str] = set()
        named = blank = 0
        left_out: Counter[str] = Counter()
        for place, default_id, row, others in corpus._read():
            named += row.id != default_id
            if named not in (0, len(ids) + 1):
                raise UserError(f"{place}: some rows have an id, and others none; give all one")
            if row.id in ids:
                raise UserError(f"{place}: the id {row.id!r} is there twice; ids must differ")
            ids.add(row.id)
            blank += not row.text.strip()
            left_out.update(others)
            corpus.kinds.learn(row, place)
        corpus.total = len(ids) - blank
        if not corpus.total:
            raise UserError(f"{name}: there are no texts in it")
        if blank:
            logger.warning("%s: left out %s without a text", name, counted(blank, "row"))
        if left_out:
            shown = ", ".join(sorted(left_out))
            logger.warning("%s: left out the columns %s, for they hold lists", name, shown)
        return corpus

    def rows(self) -> Iterator[Row]:
        """Yield the rows that have a text."""
        return (row for *_, row, _ in self._read() if row.text.strip())

    def _read(self) -> Iterator[tuple[str, str, Row, list[str]]]:
        """Yield per row its place, its id if it has none, it, and columns that are left out."""
        for file, shown, name in self.files:
            for number, text, values in text_files.read_rows(file):
                place, default_id = f"{shown}:{number}", f"{name}:{number}"
                if _is_csv(file):
                    values = _typed(values, place)
                yield place, default_id, *row_of(values, text, default_id, place)


def given_rows(given: Iterable[Mapping[str, object]]) -> tuple[list[Row], Kinds]:
    """Return rows that a program gives, checked as those of a corpus, and their kinds.

    Raises:
        UserError: if a row has no text or no id, an id is there twice, or a value cannot be held.
    """
    rows: dict[str, Row] = {}
    kinds = Kinds()
    for number, values in enumerate(given):
        place = f"row {number}"
        if not isinstance(values, Mapping):
            said = type(values).__name__
            raise UserError(f"{place}: is of type {said}; give a dict with 'id' and 'text'")
        text = values.get("text")
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{place}: has no text; give it a string under 'text'")
        row, left_out = row_of(values, text_files.replace_surrogates(text), None, place)
        if left_out:
            raise UserError(f"{place}: {left_out[0]!r} is no string, number or bool; leave it out")
        if row.id in rows:
            raise UserError(f"{place}: the id {row.id!r} is there twice; ids must differ")
        kinds.learn(row, place)
        rows[row.id] = row
    return list(rows.values()), kinds


def _typed(values: Mapping[str, object], place: str) -> dict[str, object]:
    """Return the fields of a row of CSV as what they are; only an id and a text stay strings."""
    if values.get(ID) == "":
        raise UserError(f"{place}: the id is empty")
    typed = {name: from_csv(str(value)) for name, value in values.items() if name.strip()}
    return typed | ({ID: values[ID]} if ID in values else {})


def _name_in_ids(file: Path, home: Path) -> str:
    """Return one name for one file, whatever the user calls it."""
    if file == STANDARD_INPUT:
        return "-"
    whole = file.resolve()
    return (whole.relative_to(home) if whole.is_relative_to(home) else whole).as_posix()


def _is_csv(file: Path) -> bool:
    return files.kind_of(file) == ".csv"


def _files(name: str) -> list[tuple[Path, str]]:
    """Return the files of a corpus, and their names as the user sees them."""
    folder = Path(name).expanduser()
    if folder.is_dir() and saved.is_saved(folder):
        raise UserError(f"{name}: is a folder of save_to_disk; write its rows to a .parquet file")
    found = local_files(name, split=None)
    if found is None:
        raise UserError(
            f"{name}: no such file or folder; a corpus is a file of {', '.join(files.READERS)}, a "
            "folder or a pattern of such files, or -"
        )
    if not folder.is_dir() or glob.has_magic(name):
        return [(file, str(file)) for file in found]
    whole = folder.resolve()
    return [(file, str(Path(name) / file.resolve().relative_to(whole))) for file in found]
