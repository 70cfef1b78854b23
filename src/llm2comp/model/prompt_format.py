"""Prompt formats: which tokens surround a text, and which outputs become its embedding.

A prompt of sentence-transformers, such as `query`, is a prefix of the text itself and stands within
all of these.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import PurePath
from typing import Literal

from llm2comp.recipe_parts import DataSource


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

SHOWN_PROMPTS = 3
"""The most prompts that a message names."""


def query_prompt(source: DataSource) -> str:
    """Return the prompt that is a source's instruction; empty if it has none.

    A prompt is a prefix. So it lacks the line break that follows the query in training.
    """
    return f"{source.query_instruction}:" if source.query_instruction else ""


def own_prompts(
    sources: Sequence[DataSource], row_prompts: Sequence[Sequence[str]]
) -> list[set[str]]:
    """Return what each source itself put before its queries: its instruction, or its rows' prompts.

    Args:
        sources: of a stage.
        row_prompts: for each source, the prompts that its rows had; may be shorter.
    """
    given = zip(sources, chain(row_prompts, repeat(())), strict=False)
    return [{query_prompt(source), *rows} - {""} for source, rows in given]


def trained_prompts(
    prompts: Mapping[str, str],
    given: Mapping[str, str],
    sources: Sequence[DataSource],
    row_prompts: Sequence[Sequence[str]] = (),
) -> dict[str, str]:
    """Return an encoder's prompts after it was trained on sources with prompts of their own.

    One prompt becomes the prompt `query`, unless the recipe names another. Several are prompts
    under the names of their sources, but for one that has a name already. Those of a source whose
    rows have several have no name.

    Args:
        prompts: that the encoder has, by name.
        given: those that the recipe names.
        sources: that it was trained on.
        row_prompts: as `own_prompts` takes them.
    """
    own = own_prompts(sources, row_prompts)
    distinct = set().union(*own)
    if len(distinct) == 1 and not given.get("query"):
        return dict(prompts) | {"query": distinct.pop()}
    named = {
        name: min(p)
        for name, p in zip(_prompt_names(sources, prompts), own, strict=True)
        if len(p) == 1
    }
    new = {name: prompt for name, prompt in named.items() if prompt not in prompts.values()}
    return new | dict(prompts)


def _prompt_names(sources: Sequence[DataSource], known: Collection[str]) -> list[str]:
    """Return a name for the prompt of each source: of a file its name without the ending.

    If that is the name of several sources, or of a prompt that the encoder has or every encoder may
    have, its folder is before it, and then a number is behind it.

    Args:
        sources: that the encoder was trained on.
        known: names of the prompts that it had before.
    """
    reserved = list({"query", "document", *known})
    paths = [PurePath(source.source) for source in sources]
    names = [path.stem for path in paths]
    taken = {*reserved} | {name for name, count in Counter(names).items() if count > 1}
    names = [
        f"{path.parent.name}/{name}".removeprefix("/") if name in taken else name
        for path, name in zip(paths, names, strict=True)
    ]
    return [
        f"{name}#{earlier + 1}" if (earlier := [*reserved, *names[:place]].count(name)) else name
        for place, name in enumerate(names)
    ]


def in_words(prompts: Collection[str]) -> str:
    """Return prompts for a message, in which rows with a prompt each would be too many."""
    shown = [repr(prompt) for prompt in sorted(prompts)[:SHOWN_PROMPTS]]
    if len(prompts) > SHOWN_PROMPTS:
        shown.append(f"one of {len(prompts) - SHOWN_PROMPTS} others")
    return " or ".join(shown) or "nothing"
