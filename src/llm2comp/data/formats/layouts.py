"""The columns in which other tools write queries, positives and hard negatives.

| tool | columns |
|---|---|
| FlagEmbedding | `query`, `pos` and `neg` (lists), `prompt` before the query |
| Tevatron | `query`, `positive_passages` and `negative_passages` (lists of title and text) |
| sentence-transformers | two columns of any name, and `negative` or `negative_1`, … |
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

LISTS = ("positive", "negative")
"""Our columns that may hold a list of texts, or be numbered: `negative_1`, `negative_2`, …"""
NEGATIVES = ("negatives", "neg", "negs", "hard_negative", "hard_negatives")
"""Names that others give to what we call `negative`."""
PROMPT = "prompt"
"""FlagEmbedding's column with what is put before the query."""


@dataclass(frozen=True)
class Layout:
    """The columns of a source.

    Attributes:
        columns: our names, and the source's names of them.
        tool: the tool that writes such rows; empty for our own names.
        prompt: the column of what is put before the anchor, if there is one.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    tool: str = ""
    prompt: str | None = None

    def read(self, row: Mapping[str, object]) -> dict[str, object]:
        """Return the values of a row under our names. A column that it lacks is left out.

        Numbered columns become one list. A Tevatron passage becomes its title and its text. A list
        of positives or negatives with wrong items is returned as it is.
        """
        values: dict[str, object] = {}
        for ours, theirs in self.columns.items():
            names = _columns(theirs, row) if ours in LISTS else [theirs]
            given = [row[name] for name in names if name in row]
            if len(names) > 1:
                values[ours] = _joined(given)
            elif given:
                values[ours] = _passages(given[0]) if ours in LISTS else given[0]
        anchor = values.get("anchor")
        if isinstance(anchor, str) and anchor.strip():
            values["anchor"] = f"{self.prompt_of(row)}{anchor}"
        return values

    def prompt_of(self, row: Mapping[str, object]) -> str:
        """Return what a row puts before its anchor."""
        prompt = row.get(self.prompt) if self.prompt else None
        return prompt if isinstance(prompt, str) else ""

    def lists(self, names: Collection[str]) -> list[str]:
        """Return those of a source's columns that may hold lists."""
        theirs = [self.columns[ours] for ours in LISTS if ours in self.columns]
        return [name for one in theirs for name in _columns(one, names) if name in names]

    def among(self, names: Iterable[str]) -> list[str]:
        """Return those of a source's columns that are read."""
        names = list(names)
        read = {self.prompt} if self.prompt else set()
        for ours, theirs in self.columns.items():
            read.update(_columns(theirs, names) if ours in LISTS else [theirs])
        return [name for name in names if name in read]

    def overlooked(self, names: Collection[str]) -> str | None:
        """Return what `columns` is to be if hard negatives are in a column that is not read.

        Args:
            names: all columns of the source.
        """
        theirs = self.columns.get("negative")
        if theirs is None or set(_columns(theirs, names)) & set(names):
            return None
        found = [one for one in NEGATIVES if one in names or f"{one}_1" in names]
        if not found:
            return None
        mapped = {**self.columns, "negative": found[0]}
        shown = (f"{ours}: {theirs}" for ours, theirs in mapped.items() if ours != theirs)
        return f"{{{', '.join(shown)}}}"

    def __str__(self) -> str:
        shown = ", ".join(f"{theirs} as {ours}" for ours, theirs in self.columns.items())
        before = f", with {self.prompt} before the query if there is one" if self.prompt else ""
        return f"rows of {self.tool}: {shown}{before}"


def recognise(names: Sequence[str]) -> Layout | None:
    """Return the layout of pairs that has these columns, or None if no tool writes them."""
    if {"anchor", "positive"} <= set(names):
        return None  # our own
    if {"query", "pos"} <= set(names):
        columns = {"anchor": "query", "positive": "pos", "negative": "neg"}
        return Layout(columns, "FlagEmbedding", PROMPT)
    if {"query", "positive_passages"} <= set(names):
        columns = {"anchor": "query"} | {ours: f"{ours}_passages" for ours in LISTS}
        return Layout(columns, "Tevatron")
    negatives = set(_columns("negative", names))
    others = [name for name in names if name not in negatives]
    if negatives & set(names) and len(others) == 2:
        columns = {"anchor": others[0], "positive": others[1], "negative": "negative"}
        return Layout(columns, "sentence-transformers")
    return None


def _columns(name: str, names: Collection[str]) -> list[str]:
    """Return the name, and its numbered columns in order, if they are numbered from 1."""
    if f"{name}_1" not in names:
        return [name]
    pattern = re.compile(re.escape(name) + r"_\d+")
    numbered = [one for one in names if pattern.fullmatch(one)]
    plain = [name] if name in names else []
    return plain + sorted(numbered, key=lambda one: int(one.rpartition("_")[2]))


def _joined(values: Iterable[object]) -> list[object]:
    """Return the values of numbered columns as one list, without those that are not given."""
    joined: list[object] = []
    for value in values:
        if isinstance(value, list):
            joined += map(_passage, value)
        elif value is not None and value != "":
            joined.append(value)
    return joined


def _passages(value: object) -> object:
    """Return a list of Tevatron passages as texts, and any other value as it is."""
    return [_passage(item) for item in value] if isinstance(value, list) else value


def _passage(item: object) -> object:
    """Return title and text of a Tevatron passage, as Tevatron joins them."""
    if not isinstance(item, Mapping) or not isinstance(item.get("text"), str):
        return item
    title = item.get("title")
    return f"{title if isinstance(title, str) else ''} {item['text']}".strip()
