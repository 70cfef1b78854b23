"""Find hard negatives with the miner of sentence-transformers."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from llm2comp.data.drawn.distinct import digest
from llm2comp.errors import UserError
from llm2comp.recipe_parts import HardNegatives

SCORES_AT_ONCE = 2**26
"""Scores of queries with all texts of the corpus that are in memory at once; they take 256 MB."""

Pair = tuple[str, str]
"""A query and a text that answers it."""


@dataclass(frozen=True)
class Mined:
    """A pair and the negatives that were found for it.

    Attributes:
        anchor: the query.
        positive: a text that answers it.
        negatives: hard negatives, the hardest first; fewer than were asked for if there were no
            more.
        scores: of the positive, and of each negative; none if there is no negative.
    """

    anchor: str
    positive: str
    negatives: list[str]
    scores: list[float]


def mine(
    model: SentenceTransformer,
    pairs: Iterable[Pair],
    settings: HardNegatives,
    *,
    corpus: Iterable[str] = (),
    answers: Iterable[Pair] = (),
    reranker: CrossEncoder | None = None,
    prompts: tuple[str | None, str | None] = (None, None),
    batch_size: int = 32,
) -> list[Mined]:
    """Return each distinct pair with the hard negatives that were found for it.

    Texts that differ in their form of Unicode or in spaces at their ends alone are one text. A
    query that is itself in the corpus is no negative of its own.

    Args:
        model: embeds queries and texts.
        pairs: queries and their positives. A query may have several.
        settings: which texts are taken.
        corpus: texts to search, besides all the positives.
        answers: further pairs of a query and a text that answers it. Nothing is found for them, and
            their texts are searched only if they are in the corpus or a positive.
        reranker: if given, its scores take the place of the cosines for the texts that the model
            ranks first.
        prompts: what is put before queries and texts; None for the model's own prompts.
        batch_size: texts per batch, as the model counts them.

    Raises:
        UserError: if there are no pairs, or a score is not finite.
    """
    texts: dict[bytes, str] = {}
    wanted = dict.fromkeys((_one_form(texts, a), _one_form(texts, p)) for a, p in pairs)
    if not wanted:
        raise UserError("there are no pairs to find negatives for")
    positives = dict.fromkeys(positive for _, positive in wanted)
    searched = list(dict.fromkeys(_one_form(texts, text) for text in corpus) | positives)
    known = [(_one_form(texts, a), _one_form(texts, text)) for a, text in answers]
    known += [(query, query) for query, _ in wanted]
    own = set(searched)
    rows = dict.fromkeys([*wanted, *(pair for pair in known if pair[1] in own)])
    low, high = settings.ranks or (0, None)
    query_prompt, corpus_prompt = prompts
    mined = mine_hard_negatives(
        Dataset.from_dict({"anchor": [a for a, _ in rows], "positive": [p for _, p in rows]}),
        model,
        corpus=searched,
        cross_encoder=reranker,
        range_min=low,
        range_max=high,
        absolute_margin=settings.absolute_margin,
        relative_margin=settings.relative_margin,
        num_negatives=settings.negatives,
        query_prompt=query_prompt,
        corpus_prompt=corpus_prompt,
        output_format="labeled-list",
        output_scores=True,
        batch_size=batch_size,
        faiss_batch_size=max(1, SCORES_AT_ONCE // len(searched)),
        verbose=False,
    )
    found = {(row["anchor"], row["positive"][0]): row for row in mined}
    if not np.isfinite([score for row in found.values() for score in row["scores"]]).all():
        raise UserError("an embedding or a score is not finite; use float32")
    return [
        Mined(*pair, found[pair]["positive"][1:], found[pair]["scores"])
        if pair in found
        else Mined(*pair, [], [])
        for pair in wanted
    ]


def _one_form(texts: dict[bytes, str], text: str) -> str:
    """Return the first form in which a text was met."""
    return texts.setdefault(digest(text), text)
