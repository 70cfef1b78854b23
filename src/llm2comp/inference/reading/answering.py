"""Answers to questions: what the frozen language model says after a passage and a question."""

from collections.abc import Sequence

from torch import Tensor

from llm2comp.inference.reading.going_on import Sampling, generated
from llm2comp.inference.reading.reader import Reader

PROMPT = "\n\nQuestion: What is the colour of the sky?\nAnswer: blue\nQuestion: {question}\nAnswer:"
"""What follows the passage. Without the example, SmolLM2-135M seldom gives a short answer
(docs/guides/answer-from-memory.md tells how it was chosen)."""
TOKENS = 12
"""The most tokens of an answer."""
AT_ONCE = 16
"""Questions that are answered at once."""


def asked(reader: Reader, questions: Sequence[str]) -> list[list[int]]:
    """Return the token ids of questions, as they follow a passage."""
    return reader.tokens([PROMPT.format(question=question.strip()) for question in questions])


def answers(reader: Reader, prefixes: Sequence[Tensor], tokens: int) -> list[list[int]]:
    """Return what the language model answers, greedily, until the end of a line.

    Args:
        reader: holds the model.
        prefixes: `(length, hidden)` each, a passage or its memory, and what `asked` returns.
        tokens: the most of an answer.

    Returns:
        The token ids of each answer, with that of the end.
    """
    # By length, so that there is little padding.
    order = sorted(range(len(prefixes)), key=lambda row: len(prefixes[row]))
    said: dict[int, list[int]] = {}
    for start in range(0, len(order), AT_ONCE):
        rows = order[start : start + AT_ONCE]
        some = generated(reader, [prefixes[row] for row in rows], Sampling(tokens), stop="\n")
        said.update(zip(rows, (_until_end(reader, ids) for ids in some), strict=True))
    return [said[row] for row in range(len(prefixes))]


def in_words(reader: Reader, answer: Sequence[int]) -> str:
    """Return an answer as text, without what ends it."""
    return reader.decode(answer).partition("\n")[0].strip()


def _until_end(reader: Reader, ids: list[int]) -> list[int]:
    """Cut the token ids of an answer after the first end of a line or of a text."""
    special = set(reader.tokenizer.all_special_ids)
    for end, token in enumerate(ids, start=1):
        if token in special or "\n" in reader.decode([token]):
            return ids[:end]
    return ids
