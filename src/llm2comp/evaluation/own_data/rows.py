"""What is read from a file of one's own: queries with their answers, or pairs with scores."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Retrieval:
    """Queries, the documents that are searched, and which of them answer a query.

    Attributes:
        queries: text by identifier.
        corpus: title and text by identifier; a title may be empty.
        relevant: by query, the grade of each document that has one. A grade of 0 is no answer.
    """

    queries: dict[str, str]
    corpus: dict[str, tuple[str, str]]
    relevant: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Scored:
    """Pairs of texts, and how similar each pair is.

    Attributes:
        anchors: the first text of each pair.
        positives: the second text.
        scores: any numbers; only their order counts.
    """

    anchors: list[str]
    positives: list[str]
    scores: list[float]
