"""The form of an encoder: what is put around a text, and which outputs become its embedding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing


@dataclass(frozen=True)
class Form:
    """How an objective's encoder reads a text.

    Attributes:
        pooling: the embedding is the mean over the ``memory`` tokens behind the
            text, or over the ``text``'s own tokens, and there are no memory tokens.
        before: prompt in front of the text, behind BOS.
        after: prompt between the text and its memory tokens.
        spare_rows: whether the objective trains as many memory rows again that
            the encoder does not read; they stand before the others in the table.
    """

    pooling: Literal["memory", "text"] = "memory"
    before: str = ""
    after: str = ""
    spare_rows: bool = False

    def tokens(self, k: int) -> int:
        """Return how many memory tokens stand behind a text, of a recipe's k."""
        return k if self.pooling == "memory" else 0

    def rows(self, k: int) -> int:
        """Return how many memory rows are appended to the token table and trained."""
        return self.tokens(k) * (2 if self.spare_rows else 1)


COMPRESSION = Form()
"""The paper's: k memory tokens behind the text, and nothing else around it."""


def surround(backend: Tokenizer, before: Sequence[int], after: Sequence[int]) -> None:
    """Put token ids in front of every text and behind it, in place."""
    ids = {"before": list(before), "after": list(after)}
    front, behind = ([name] if ids[name] else [] for name in ids)
    backend.post_processor = TemplateProcessing(
        single=[*front, "$A", *behind],
        pair=[*front, "$A", "$B", *behind],
        special_tokens=[
            {"id": name, "ids": ids[name], "tokens": [backend.id_to_token(i) for i in ids[name]]}
            for name in (*front, *behind)
        ],
    )
