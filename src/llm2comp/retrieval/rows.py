"""The rows of an index: their ids, texts and metadata, and the kinds of values that they hold."""

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from llm2comp.data.text_files import require_id
from llm2comp.errors import UserError

ID, TEXT, VECTOR = "id", "text", "vector"
"""The columns that every index has."""
VECTORS = "_vectors"
"""The column that an index of k vectors per text has too. No metadata has such a name."""
Kind = Literal["bool", "int", "float", "str"]
"""What the values of a column of metadata are. All of them may be missing."""
Value = bool | int | float | str | None
LARGEST = 2**63 - 1
"""The largest whole number that an index holds."""


@dataclass(frozen=True)
class Row:
    """A text of an index.

    Attributes:
        id: by which it is changed and deleted.
        text: what is embedded.
        metadata: values by column, which a filter may use.
    """

    id: str
    text: str
    metadata: Mapping[str, Value] = field(default_factory=dict)


def row_of(
    values: Mapping[str, object], text: str, default_id: str | None, where: str
) -> tuple[Row, list[str]]:
    """Return the row of an index that the values of a corpus make, and what is left out of it.

    Args:
        values: by column.
        text: the text of the row, which no tokenizer refuses.
        default_id: the id of a row without one; None if every row needs its own.
        where: the place of the row, for messages.

    Returns:
        The row, and the names of its columns that hold lists and the like.

    Raises:
        UserError: if the id is missing or no id, a column has a name that an index cannot have, or
            a number is too large.
    """
    metadata, left_out = {}, []
    for name, value in values.items():
        if name in (ID, TEXT):
            continue
        if not isinstance(name, str):
            raise UserError(f"{where}: the column {name!r} is no string; give it a name")
        if isinstance(value, datetime.date | datetime.time):
            value = value.isoformat()
        if isinstance(value, float) and math.isnan(value):  # as pandas writes a missing value
            value = None
        if value is not None and not isinstance(value, bool | int | float | str):
            left_out.append(name)
            continue
        if not _is_name(name):
            raise UserError(
                f"{where}: the column {name!r} has a name that an index cannot have; rename it "
                f"(no {VECTOR!r}, no dot or backtick, no _ at the start)"
            )
        if isinstance(value, int) and abs(value) > LARGEST:
            raise UserError(f"{where}: {name!r} is {value}; an index holds integers of 64 bits")
        _require_characters(name, where)
        _require_characters(value, where)
        metadata[name] = value
    given = values.get(ID)
    own = default_id if given is None and default_id is not None else require_id(given, where)
    return Row(own, text, metadata), left_out


def _require_characters(value: object, where: str) -> None:
    """Refuse a string with half a character, which no file can hold."""
    if isinstance(value, str) and any("\ud800" <= sign <= "\udfff" for sign in value):
        raise UserError(f"{where}: {value!r} has half a character; correct the row")


def _is_name(name: str) -> bool:
    odd = any(sign in name for sign in ".`\0") or not name.strip()
    return name.lower() not in (ID, TEXT, VECTOR) and not name.startswith("_") and not odd


@dataclass
class Kinds:
    """The kind of each column of metadata, which every row is held to.

    Attributes:
        known: the kind by the name of the column.
        lenient: whether a column of strings and numbers holds strings. CSV has nothing else.
        inexact: by column, a row with an integer that no float equals.
    """

    known: dict[str, Kind] = field(default_factory=dict)
    lenient: bool = False
    inexact: dict[str, str] = field(default_factory=dict, compare=False)

    def learn(self, row: Row, where: str) -> None:
        """Note the kinds of a row. Integers and floats together are floats.

        Raises:
            UserError: if a column held values of another kind before, integers that are no
                floats are among floats, or two names of columns differ in case alone.
        """
        for name, value in row.metadata.items():
            if value is None:
                continue
            self._require_spelling(name, where)
            said = f"{where}: {name!r} is {value!r}"
            if type(value) is int and float(value) != value:
                self.inexact.setdefault(name, said)
            self._learn(name, kind_of(value), said)

    def joined(self, new: "Kinds", where: str) -> "Kinds":
        """Return the columns of an index, to which rows of new kinds are added.

        Raises:
            UserError: if the index cannot hold the values of a column.
        """
        both = Kinds(dict(self.known))
        for name, kind in new.known.items():
            both._require_spelling(name, where)
            there = both.known.setdefault(name, kind)
            fits = there == kind or (there, kind) == ("float", "int")
            if not (fits or (there == "str" and new.lenient)):
                raise UserError(
                    f"{where}: the column {name!r} holds {kind}, and {there} in the index; make "
                    "it that, or rename the column"
                )
            if there == "float" and name in new.inexact:
                raise _no_float(new.inexact[name])
        return both

    def _require_spelling(self, name: str, where: str) -> None:
        """Refuse a new column whose name differs from another in case alone.

        A filter does not tell them apart.
        """
        if name in self.known:
            return
        for other in self.known:
            if other.lower() == name.lower():
                raise UserError(
                    f"{where}: the columns {other!r} and {name!r} differ in case alone; rename one"
                )

    def _learn(self, name: str, kind: Kind, said: str) -> None:
        before = self.known.setdefault(name, kind)
        if before == kind:
            return
        numbers = {before, kind} == {"int", "float"}
        if numbers and name not in self.inexact:
            self.known[name] = "float"
        elif self.lenient:
            self.known[name] = "str"
        elif numbers:
            raise _no_float(self.inexact[name])
        else:
            raise UserError(
                f"{said}, and other rows have a value of type {before} there; give all rows "
                "values of one type"
            )

    def values(self, row: Row) -> dict[str, Value]:
        """Return a value for each column, as the index holds it; missing ones are None."""
        return {name: self._value(row.metadata.get(name), kind) for name, kind in self.items()}

    def _value(self, value: Value, kind: Kind) -> Value:
        if value is None or kind_of(value) == kind:
            return value
        return float(value) if kind == "float" else str(value)

    def items(self) -> list[tuple[str, Kind]]:
        """Return the names and kinds of the columns."""
        return list(self.known.items())


def _no_float(said: str) -> UserError:
    """Return the error of an integer in a column of floats, where it would become another one."""
    return UserError(
        f"{said}, which no float equals, and the column holds floats; make its values strings"
    )


def kind_of(value: bool | int | float | str) -> Kind:
    """Return the kind of a value."""
    kinds: tuple[tuple[type, Kind], ...] = ((bool, "bool"), (int, "int"), (float, "float"))
    return next((kind for known, kind in kinds if isinstance(value, known)), "str")


def from_csv(said: str) -> Value:
    """Return the value of a field of a CSV file, which is None if it is empty.

    It is a number if Python writes that number so. "007", "1.10" and "1,5" stay strings. So a
    number can become the string again, and nothing is lost.
    """
    for kind in (int, float):
        try:
            number = kind(said)
        except ValueError:
            continue
        if str(number) == said and math.isfinite(number) and abs(number) <= LARGEST:
            return number
    return said or None
