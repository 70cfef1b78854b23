"""Rows with several positives or negatives become rows with one positive and some negatives."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from llm2comp.data.drawn.distinct import digest
from llm2comp.data.drawn.left_out import LeftOut
from llm2comp.data.formats.layouts import LISTS
from llm2comp.recipe import DataSource


def expanded(
    row: Mapping[str, Any], source: DataSource, left_out: LeftOut
) -> Iterator[dict[str, Any]]:
    """Yield rows with one positive and at most `source.negatives` negatives each.

    The negatives are divided into groups of this size. There are as many rows as positives or as
    groups, whichever are more. The i-th row has the i-th positive and the i-th group, and the
    shorter list begins again when it ends. A negative that is also a positive of the row is left
    out, and one that is there twice is used once.

    Args:
        row: a good row under our names. `positive` and `negative` are texts or lists of texts.
        source: where it is from.
        left_out: counts the negatives that are left out.

    Yields:
        Rows with `negative`, a list, if there are negatives left, and `positives`, a list of all
        positives, if there are several. Other values are texts.
    """
    texts = {name: str(value) for name, value in row.items() if name not in LISTS}
    if "positive" not in row:
        yield texts
        return
    positives = list(_distinct(_listed(row["positive"])).values())
    negatives = _distinct(_listed(row.get("negative", [])))
    false = negatives.keys() & _distinct(positives).keys()
    left_out.count("false_negatives", source.source, len(false))
    kept = [text for key, text in negatives.items() if key not in false]
    size = source.negatives
    groups = [kept[start : start + size] for start in range(0, len(kept), size)] or [[]]
    for index in range(max(len(positives), len(groups))):
        one: dict[str, Any] = {"positive": positives[index % len(positives)]}
        if groups[index % len(groups)]:
            one["negative"] = groups[index % len(groups)]
        if len(positives) > 1:
            one["positives"] = positives
        yield texts | one


def _listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def _distinct(texts: Iterable[str]) -> dict[bytes, str]:
    """Return the first of each text by its digest."""
    found: dict[bytes, str] = {}
    for text in texts:
        found.setdefault(digest(text), text)
    return found
