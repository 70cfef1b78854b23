"""The items behind a study's scores in one file, so that settings can be compared anywhere."""

import json
import lzma
from pathlib import Path
from typing import Any

from llm2comp.errors import UserError
from llm2comp.evaluation.store import ResultStore
from llm2comp.utils.files import atomic_file

FILE = "items.json.xz"

Items = dict[str, dict[str, Any]]
"""By name of an encoder in the store and by task, what `intervals.items` returned."""


def read(out: Path) -> Items:
    """Return the items in a study's folder; none if the folder has no such file.

    Raises:
        UserError: if the file cannot be read.
    """
    file = out / FILE
    if not file.exists():
        return {}
    try:
        known: Items = json.loads(lzma.decompress(file.read_bytes()))
    except (lzma.LZMAError, EOFError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read; remove it, and intervals are computed from scores/ alone"
        ) from error
    return known


def write(out: Path, items: Items) -> None:
    """Write the items to a study's folder."""
    with atomic_file(out / FILE) as partial:
        partial.write_bytes(lzma.compress(json.dumps(items).encode()))


def add_stored(items: Items, store: ResultStore, wanted: set[tuple[str, str]]) -> Items:
    """Return the items with those of a store, which replace older ones.

    Args:
        items: what is known already.
        store: the study's results.
        wanted: encoders and tasks whose items are taken from the store.
    """
    merged = {name: dict(tasks) for name, tasks in items.items()}
    for result in store.all():
        if result.items and (result.model, result.score.task) in wanted:
            merged.setdefault(result.model, {})[result.score.task] = result.items
    return merged
