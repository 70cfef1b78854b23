"""Rows with several positives or negatives become rows with one positive and some negatives."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from llm2comp.data.drawn.distinct import digest
from llm2comp.data.drawn.left_out import LeftOut
from llm2comp.data.formats.layouts import LISTS, PROMPT
from llm2comp.recipe_parts import DataSource


def expanded(
    row: Mapping[str, Any], source: DataSource, left_out: LeftOut, *, keep_same: bool
) -> Iterator[dict[str, Any]]:
    """Yield rows with one positive and at most `source.negatives` negatives each.

    The negatives are divided into groups of this size. There are as many rows as positives or as
    groups, whichever are more. The i-th row has the i-th positive and the i-th group, and the
    shorter list begins again when it ends. A text that is there twice is used once. Left out are a
    negative that is also a positive of the row, and a text that is the query itself: as a negative
    it would push the query from itself, and as a positive it teaches nothing.

    Args:
        row: a good row under our names. `positive` and `negative` are texts or lists of texts.
            `prompt` is what its anchor begins with.
        source: where it is from.
        left_out: counts the texts that are left out.
        keep_same: whether a positive may be the query itself.

    Yields:
        Rows with `negative`, a list, if there are negatives left, and `positives`, a list of all
        positives, if there are several. Other values are texts.
    """
    texts = {name: str(value) for name, value in row.items() if name not in LISTS}
    if "positive" not in row:
        yield texts
        return
    listed = [_listed(row["positive"]), _listed(row.get("negative", []))]
    found, negatives = map(_distinct, listed)
    repeated = sum(map(len, listed)) - len(found) - len(negatives)
    query = (
        digest(texts["anchor"].removeprefix(texts.get(PROMPT, ""))) if "anchor" in texts else b""
    )
    same = [negatives.pop(query, None)]
    if not keep_same:
        same.append(found.pop(query, None))
    false = negatives.keys() & found.keys()
    for reason, number in (
        ("repeated", repeated),
        ("same_as_query", len(same) - same.count(None)),
        ("false_negatives", len(false)),
    ):
        left_out.count(reason, source.source, number)
    positives = list(found.values())
    if not positives:
        return
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
