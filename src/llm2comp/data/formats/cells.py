"""Lists of texts in the cells of a CSV file, which holds text alone."""

import ast
import io
import json
import logging
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from llm2comp.data.files import BadRow, NumberedRow

logger = logging.getLogger("llm2comp")

PRINTED_ARRAY = BadRow(
    "holds a printed array, whose texts cannot be told apart; write them as a JSON list"
)


class Cells:
    """Reads the cells of some columns that hold a list as lists, and the others as texts.

    A list is a JSON list of texts, or what pandas writes for one: `['a', 'b']`. Any other cell that
    begins with a bracket is a text.

    Args:
        source: the name of the source, for the log.
        choose: returns those of the columns that may hold lists.
        announced: whether the log says that lists were found.
    """

    def __init__(
        self, source: str, choose: Callable[[Sequence[str]], list[str]], *, announced: bool
    ) -> None:
        self._source = source
        self._choose = choose
        self._announced = announced
        self._said: set[str] = set()

    def read(self, rows: Iterable[NumberedRow]) -> Iterator[NumberedRow]:
        """Yield the rows of one file with their lists.

        A row is bad if a cell holds a printed numpy array, `['a' 'b']`, whose texts Python joins.
        """
        names: list[str] | None = None
        for number, row in rows:
            if isinstance(row, BadRow):
                yield number, row
                continue
            if names is None:
                names = self._choose(list(row))
            yield number, self._with_lists(row, names)

    def _with_lists(
        self, row: Mapping[str, object], names: Sequence[str]
    ) -> Mapping[str, object] | BadRow:
        found: dict[str, object] = {}
        for name in names:
            listed = _list_in(str(row[name]))
            if listed is None:
                continue
            if isinstance(listed, BadRow):
                return BadRow(f"column {name!r} {listed.reason}")
            found[name] = listed
            if self._announced and name not in self._said:
                self._said.add(name)
                logger.info("%s: column %r holds lists of texts", self._source, name)
        return {**row, **found}


def _list_in(cell: str) -> list[object] | BadRow | None:
    """Return the list of texts, or of passages of Tevatron, that a cell holds, or None."""
    stripped = cell.strip()
    if not (stripped.startswith("[") and stripped.endswith("]")):
        return None
    try:
        value = json.loads(stripped)
    except (ValueError, RecursionError):
        value = _python(stripped)
        if _is_list(value, str) and len(value) < _count_of_texts(stripped):
            return PRINTED_ARRAY
    return value if _is_list(value, str, dict) else None


def _python(text: str) -> Any:
    """Return the value of a Python literal, or None if the text is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of a backslash in a text
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _is_list(value: object, *kinds: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kinds) for item in value)


def _count_of_texts(literal: str) -> int:
    """Return how many texts a Python literal has before Python joins those without a comma."""
    tokens = tokenize.generate_tokens(io.StringIO(literal).readline)
    return sum(token.type == tokenize.STRING for token in tokens)
