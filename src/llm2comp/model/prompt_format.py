"""Prompt formats: what stands around a text, and which outputs become its embedding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing


@dataclass(frozen=True)
class PromptFormat:
    """How an encoder reads a text.

    Attributes:
        pooling: the embedding is the mean over the outputs of the ``memory`` tokens behind the
            text, or over those of the ``text``'s own tokens. With ``text`` there are no memory
            tokens.
        before: prompt in front of the text, behind BOS.
        after: prompt between the text and its memory tokens.
        extra_tokens: whether the objective trains as many memory tokens again, which the encoder
            does not read. Their rows stand before the others' in the token table.
    """

    pooling: Literal["memory", "text"] = "memory"
    before: str = ""
    after: str = ""
    extra_tokens: bool = False

    def tokens(self, k: int) -> int:
        """Return how many memory tokens stand behind a text, given the recipe's k."""
        return k if self.pooling == "memory" else 0

    def num_memory_embeddings(self, k: int) -> int:
        """Return how many rows are appended to the token table and trained, given k."""
        return self.tokens(k) * (2 if self.extra_tokens else 1)


PROMPT_FORMATS: dict[str, PromptFormat] = {
    # The paper's: k memory tokens behind the text, and nothing else around it.
    "memory": PromptFormat(),
    # LLM2Vec's: the text alone.
    "text": PromptFormat(pooling="text"),
    # Llama2Vec's (LLARA): EBAE's prompt; EBAR's special tokens are the extra ones.
    "summarize": PromptFormat(
        before='"',
        after='", summarize the above passage within eight words: ',
        extra_tokens=True,
    ),
}
"""Every format by its name, which an encoder folder records."""

COMPRESSION = PROMPT_FORMATS["memory"]


def set_template(backend: Tokenizer, before: Sequence[int], after: Sequence[int]) -> None:
    """Put token ids in front of every text and behind it, in place.

    The tokenizer's own post-processor does it. Truncation therefore cuts the text and never what
    is around it, and an encoder folder needs no code of this package.
    """
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
