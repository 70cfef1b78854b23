"""Find hard negatives: compare each query with all texts, and keep the best that are no answers."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from llm2comp.data.drawn.distinct import digest
from llm2comp.errors import UserError
from llm2comp.inference.vector_format import to_unit_length
from llm2comp.recipe_parts import HardNegatives
from llm2comp.utils.progress import text_progress, track_texts

SCORES_AT_ONCE = 2**26
"""Scores of queries with all texts of the corpus that are in memory at once; they take 256 MB."""
RERANKED = 10
"""Without ranks, a reranker scores so many texts for each negative that is asked for."""

Pair = tuple[str, str]
"""A query and a text that answers it."""
Floats = npt.NDArray[np.float32]
Ranked = list[tuple[int, float]]
"""Places of texts and their scores, the best first."""


@dataclass(frozen=True)
class Mined:
    """A pair and the negatives that were found for it.

    Attributes:
        anchor: the query.
        positive: a text that answers it.
        negatives: hard negatives that were found, the hardest first; fewer than were asked for if
            there were no more.
        scores: of the positive, and of each of these negatives; none if there is no negative.
        own: negatives that the pair had before. They have no scores.
    """

    anchor: str
    positive: str
    negatives: list[str]
    scores: list[float]
    own: list[str] = field(default_factory=list)


def remedies(settings: HardNegatives, *, reranked: bool) -> str:
    """Return what may give more negatives, in words."""
    found = ["give more texts to search"]
    if settings.ranks:
        found.insert(0, "widen the ranks")
    elif reranked:
        found.insert(0, f"give wider ranks than 0 to {RERANKED * settings.negatives}")
    if settings.relative_margin or settings.absolute_margin:
        found.insert(0, "lower the margins")
    return ", or ".join(found)


def mine(
    model: SentenceTransformer,
    pairs: Iterable[Pair],
    settings: HardNegatives,
    *,
    corpus: Iterable[str] = (),
    answers: Iterable[Pair] = (),
    negatives: Iterable[Pair] = (),
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
        negatives: pairs of a query and a text that is its negative already. Such a text is searched
            for the other queries, and is not found again for its own.
        reranker: if given, its scores take the place of the cosines for the texts that the model
            ranks first.
        prompts: what is put before queries and texts; None for the model's own prompts.
        batch_size: texts per batch, as the model counts them.

    Raises:
        UserError: if there are no pairs, or a score is not finite.
    """
    texts: dict[bytes, str] = {}
    wanted = dict.fromkeys(_in_one_form(texts, pairs))
    if not wanted:
        raise UserError("there are no pairs to find negatives for")
    known = list(_in_one_form(texts, negatives))
    candidates = [texts.setdefault(digest(text), text) for text in corpus]
    candidates += [text for _, text in (*wanted, *known)]
    place = {text: number for number, text in enumerate(dict.fromkeys(candidates))}
    searched, queries = list(place), list(dict.fromkeys(query for query, _ in wanted))
    answered = _places(place, [*wanted, *_in_one_form(texts, answers)])
    left_out = _places(place, [*known, *((query, query) for query in queries)])

    def judge(query: str, places: list[int]) -> Floats:
        assert reranker is not None
        both = [(query, searched[one]) for one in places]
        scores = reranker.predict(both, batch_size=batch_size, show_progress_bar=False)
        return _finite(scores)

    found: dict[str, tuple[dict[int, float], Ranked]] = {}
    with text_progress() as progress:
        options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": False}
        with track_texts(model, progress, progress.add_task("queries", total=len(queries))):
            vectors = model.encode_query(queries, prompt=prompts[0], **options)
            asked = to_unit_length(_finite(vectors))
        with track_texts(model, progress, progress.add_task("texts", total=len(searched))):
            vectors = model.encode_document(searched, prompt=prompts[1], **options)
            compared = to_unit_length(_finite(vectors))
        rows = zip(queries, _cosines(asked, compared), strict=True)
        for query, cosines in progress.track(rows, len(queries), description="negatives"):
            own, others = sorted(answered[query]), sorted(left_out.get(query, ()))
            if reranker is None:
                found[query] = _nearest(cosines, own, others, settings)
            else:
                found[query] = _reranked(cosines, own, others, settings, partial(judge, query))
    mined = []
    for query, positive in wanted:
        positives, best = found[query]
        scores = [positives[place[positive]], *(score for _, score in best)] if best else []
        mined.append(Mined(query, positive, [searched[one] for one, _ in best], scores))
    return mined


def _in_one_form(texts: dict[bytes, str], pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Yield pairs with the first form in which each text was met."""
    for query, text in pairs:
        yield texts.setdefault(digest(query), query), texts.setdefault(digest(text), text)


def _places(place: dict[str, int], pairs: Iterable[Pair]) -> dict[str, set[int]]:
    """Return the places of the texts of each query, of those that are searched."""
    places: dict[str, set[int]] = {}
    for query, text in pairs:
        if text in place:
            places.setdefault(query, set()).add(place[text])
    return places


def _finite(numbers: npt.ArrayLike) -> Floats:
    array = np.array(numbers, dtype=np.float32)
    if not np.isfinite(array).all():
        raise UserError("an embedding or a score is not finite; use float32")
    return array


def _cosines(queries: Floats, texts: Floats) -> Iterator[Floats]:
    """Yield the cosines of each query with all texts."""
    together = max(1, SCORES_AT_ONCE // len(texts))
    for start in range(0, len(queries), together):
        yield from queries[start : start + together] @ texts.T


def _nearest(
    cosines: Floats, answers: list[int], others: list[int], settings: HardNegatives
) -> tuple[dict[int, float], Ranked]:
    """Return the cosines of a query's answers, and its negatives among all texts.

    Args:
        cosines: of the query with all texts; they are changed.
        answers: places of the texts that answer the query.
        others: places of further texts that are no candidates.
        settings: which texts are taken.
    """
    scores = cosines[answers]
    cosines[[*answers, *others]] = -np.inf
    low, high = settings.ranks or (0, len(cosines))
    # The texts that score too high have the first ranks.
    first = max(low, int(np.count_nonzero(cosines > _limit(scores, settings))))
    best = _ranked(cosines, first, min(high, first + settings.negatives))
    return dict(zip(answers, scores.tolist(), strict=True)), best


def _reranked(
    cosines: Floats,
    answers: list[int],
    others: list[int],
    settings: HardNegatives,
    judge: Callable[[list[int]], Floats],
) -> tuple[dict[int, float], Ranked]:
    """Return the scores of a query's answers and negatives, as `_nearest` does.

    Args:
        cosines: as `_nearest` takes them, like the next arguments.
        answers: places of the texts that answer the query.
        others: places of further texts that are no candidates.
        settings: which texts are taken.
        judge: returns the scores of the texts at some places.
    """
    cosines[[*answers, *others]] = -np.inf
    low, high = settings.ranks or (0, RERANKED * settings.negatives)
    near = [one for one, _ in _ranked(cosines, low, high)]
    scores = judge([*answers, *near])
    own, rest = scores[: len(answers)], scores[len(answers) :]
    limit = _limit(own, settings)
    left = [(one, float(score)) for one, score in zip(near, rest, strict=True) if score <= limit]
    best = sorted(left, key=lambda pair: -pair[1])[: settings.negatives]
    return dict(zip(answers, own.tolist(), strict=True)), best


def _limit(positives: Floats, settings: HardNegatives) -> float:
    """Return the highest score that a negative may have."""
    lowest = float(positives.min())
    return lowest - max(settings.absolute_margin, settings.relative_margin * abs(lowest))


def _ranked(cosines: Floats, first: int, end: int) -> Ranked:
    """Return the texts of some ranks, but for those that are no candidates."""
    nearest = torch.from_numpy(cosines).topk(min(end, len(cosines)))
    ranked = zip(nearest.indices.tolist(), nearest.values.tolist(), strict=True)
    return [pair for pair in islice(ranked, first, None) if pair[1] > -np.inf]
