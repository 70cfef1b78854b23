"""The batches that the losses read: rows sorted by length, and dealt to processes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

from llm2comp.data.drawn.pair_file import POSITIVES, texts_of
from llm2comp.data.sources import NEGATIVE
from llm2comp.training.distributed import world
from llm2comp.training.distributed.shares import deal


@dataclass
class LengthSorted(SentenceTransformerDataCollator):
    """Sorts the rows of a batch by length, so that mini-batches need little padding.

    The cached loss cuts a batch into mini-batches, and each is padded to its own longest text. No
    loss here depends on the order of the rows.

    A row may have any number of negatives, also none. Those of all rows become one column, which
    then has more or fewer texts than there are rows: every negative of a batch is one for each of
    its anchors, so InfoNCE does not ask to which row it belongs.

    If several processes train together, each gets its share of the rows. The batch then has
    `counts`: for each column of texts, how many each process has. A process without a text of a
    column gets one that counts for nothing, because all processes must take part.
    """

    def __post_init__(self) -> None:
        """Let the stock collator read columns of lists."""
        read = self.preprocess_fn
        self.preprocess_fn = lambda values, **options: read(_flat(values), **options)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch that the stock collator makes from the sorted rows."""
        unread = {POSITIVES}
        negatives = _flat(row.get(NEGATIVE) for row in features)
        if not negatives:
            unread.add(NEGATIVE)
        rows = sorted(features, key=_characters)
        shares = deal([{n: row[n] for n in row if n not in unread} for row in rows])
        own = shares[world.rank()] or shares[0][:1]
        if negatives and not _flat(row[NEGATIVE] for row in own):
            own = [own[0] | {NEGATIVE: negatives[:1]}, *own[1:]]
        batch = super().__call__(list(own))
        if world.size() > 1:
            columns = [name for name in own[0] if f"{name}_input_ids" in batch]
            batch["counts"] = [
                [len(_flat(row[name] for row in share)) for share in shares] for name in columns
            ]
        return batch


def _flat(values: Iterable[str | list[str] | None]) -> list[str]:
    return [text for value in values for text in texts_of(value)]


def _characters(row: dict[str, Any]) -> int:
    return sum(map(len, _flat([row["anchor"], row["positive"], row.get(NEGATIVE)])))
