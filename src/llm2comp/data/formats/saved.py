"""Read a folder that `save_to_disk` of `datasets` wrote, by memory mapping."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import datasets

from llm2comp.data.files import NumberedRow
from llm2comp.errors import UserError, one_line

MARKS = ("dataset_dict.json", "state.json")
"""Files that such a folder of several splits, or of one, holds."""
ROWS = 1024
"""Rows that are in memory at once."""


def is_saved(path: Path) -> bool:
    """Return whether a folder is one of `save_to_disk`, and no corpus with a file of that name."""
    return any((path / mark).is_file() for mark in MARKS) and any(path.rglob("*.arrow"))


def read(
    path: Path, split: str, choose: Callable[[Sequence[str]], list[str]]
) -> Iterator[NumberedRow]:
    """Yield the rows of a folder of `save_to_disk` with their numbers.

    Args:
        path: the folder.
        split: which split of a folder with several.
        choose: returns those of the columns that are read. The others are None.

    Raises:
        UserError: if it cannot be read, or has no such split.
    """
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever Arrow and JSON say of a damaged folder
        raise UserError(f"{path}: cannot be read as a saved dataset: {one_line(error)}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise UserError(f"{path}: has no split {split!r}; there are {', '.join(loaded)}")
        loaded = loaded[split]
    elif split not in ("train", str(loaded.split)):
        raise UserError(f"{path}: holds one split alone, and not {split!r}; leave split out")
    names = loaded.column_names
    unread: dict[str, object] = dict.fromkeys(names)
    number = 0
    for table in loaded.select_columns(choose(names)).with_format("arrow").iter(ROWS):
        for row in table.to_pylist():
            number += 1
            yield number, unread | row
