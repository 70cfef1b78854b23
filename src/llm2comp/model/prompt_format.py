"""Prompt formats: which tokens surround a text, and which outputs become its embedding."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PromptFormat:
    """How an encoder reads a text.

    Attributes:
        pooling: `memory` if the embedding is the mean over the outputs of the memory tokens after
            the text; `text` if it is the mean over the text's own tokens. With `text` there are no
            memory tokens, and a first token is always before the text, because an empty text would
            otherwise have no token.
        before: prompt between BOS and the text.
        after: prompt between the text and its memory tokens.
        extra_tokens: whether the objective trains k further memory tokens, which the encoder does
            not use. In the token table they come before the k that it uses.
    """

    pooling: Literal["memory", "text"] = "memory"
    before: str = ""
    after: str = ""
    extra_tokens: bool = False

    def num_memory_tokens(self, k: int) -> int:
        """Return the number of memory tokens after a text, given the recipe's k."""
        return k if self.pooling == "memory" else 0

    def num_memory_embeddings(self, k: int) -> int:
        """Return the number of rows that are appended to the token table, given k."""
        return self.num_memory_tokens(k) * (2 if self.extra_tokens else 1)


PROMPT_FORMATS: dict[str, PromptFormat] = {
    # The paper's format: BOS, the text, k memory tokens.
    "memory": PromptFormat(),
    # LLM2Vec's format: BOS and the text.
    "text": PromptFormat(pooling="text"),
    # Llama2Vec's format (LLARA): the prompt is EBAE's, the extra tokens are EBAR's special tokens.
    "summarize": PromptFormat(
        before='"',
        after='", summarize the above passage within eight words: ',
        extra_tokens=True,
    ),
}
"""Every format by its name, which an encoder folder records."""

DEFAULT_FORMAT = PROMPT_FORMATS["memory"]
