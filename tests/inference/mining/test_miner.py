"""Hard negatives obey margins and ranks, and a positive of the same query is never one."""

import random
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sentence_transformers import CrossEncoder, SentenceTransformer

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))  # for base_encoders

from base_encoders import write_reranker

from llm2comp.errors import UserError
from llm2comp.evaluation import baselines
from llm2comp.inference.mining.miner import RERANKED, Mined, mine
from llm2comp.inference.mining.reranker import load_reranker
from llm2comp.recipe_parts import HardNegatives

Pairs = list[tuple[str, str]]


@pytest.fixture(scope="module")
def encoder(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    folder = tmp_path_factory.mktemp("encoder")
    model = baselines.build("last-token", tiny_backbone)
    model.prompts = {"query": "find: ", "document": "note: "}
    model.save_pretrained(str(folder))
    return SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def pairs(sentences: list[str]) -> Pairs:
    """Forty pairs of twenty-five queries; some queries have several positives."""
    generator = random.Random(0)
    words = " ".join(sentences).split()
    texts = [" ".join(generator.choices(words, k=6)) for _ in range(65)]
    return [(texts[i % 25], texts[25 + i]) for i in range(40)]


@pytest.fixture(scope="module")
def corpus(sentences: list[str]) -> list[str]:
    generator = random.Random(1)
    words = " ".join(sentences).split()
    return [" ".join(generator.choices(words, k=6)) for _ in range(60)]


@pytest.fixture(scope="module")
def cross_encoder(sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reranker(tmp_path_factory.mktemp("rerankers") / "one", sentences)


def literal(
    encoder: SentenceTransformer,
    pairs: Pairs,
    corpus: list[str],
    settings: HardNegatives,
    judge: CrossEncoder | None = None,
) -> dict[tuple[str, str], list[str]]:
    """Do what the docs say, one query and one text at a time."""
    found = {}
    searched = [*corpus, *(p for _, p in pairs if p not in corpus)]
    positives = {query: [p for q, p in pairs if q == query] for query, _ in pairs}
    deepest = len(searched) if judge is None else RERANKED * settings.negatives
    low, high = settings.ranks or (0, deepest)

    @cache
    def vector(text: str) -> Any:
        embedding = encoder.encode(text)
        return embedding / np.linalg.norm(embedding)

    def cosine(query: str, text: str) -> float:
        return float(vector(f"find: {query}") @ vector(f"note: {text}"))

    @cache
    def score(query: str, text: str) -> float:
        return cosine(query, text) if judge is None else float(judge.predict([(query, text)])[0])

    for query, own in positives.items():
        others = [text for text in searched if text not in own]
        nearest = sorted(others, key=lambda text: -cosine(query, text))[low:high]
        worst = min(score(query, text) for text in own)
        limit = min(worst - settings.absolute_margin, worst - abs(worst) * settings.relative_margin)
        left = [text for text in nearest if score(query, text) <= limit]
        left.sort(key=lambda text: -score(query, text))
        for positive in own:
            found[query, positive] = left[: settings.negatives]
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {"negatives": 1, "relative_margin": 0},
        {"negatives": 3, "relative_margin": 0.05},
        {"negatives": 2, "relative_margin": 0.01, "absolute_margin": 0.1, "ranks": (2, 9)},
        {"negatives": 4, "relative_margin": 0, "ranks": (5, 200)},
        {"negatives": 1, "relative_margin": 0, "absolute_margin": 0.6},
        {"negatives": 3, "relative_margin": 0.05, "ranks": (0, 5)},
        {"negatives": 100, "relative_margin": 0},
    ],
    ids=[
        "nearest",
        "relative margin",
        "both margins and ranks",
        "ranks beyond the corpus",
        "only far texts are left",
        "margins that leave few of the ranks",
        "all that are left",
    ],
)
def test_negatives_are_those_of_a_literal_search(
    encoder: SentenceTransformer, pairs: Pairs, corpus: list[str], settings: dict[str, object]
) -> None:
    chosen = HardNegatives.model_validate(settings)
    mined = mine(encoder, pairs, chosen, corpus=corpus)
    expected = literal(encoder, pairs, corpus, chosen)
    assert {(row.anchor, row.positive): row.negatives for row in mined} == expected
    assert any(expected.values())


@pytest.mark.parametrize("ranks", [None, (3, 30)])
def test_a_reranker_gives_the_scores_that_the_margin_is_about(
    encoder: SentenceTransformer,
    pairs: Pairs,
    corpus: list[str],
    cross_encoder: Path,
    ranks: tuple[int, int] | None,
) -> None:
    chosen = HardNegatives(negatives=2, relative_margin=0.1, ranks=ranks)
    judge = load_reranker(str(cross_encoder))
    mined = mine(encoder, pairs, chosen, corpus=corpus, reranker=judge)
    expected = literal(encoder, pairs, corpus, chosen, judge)
    assert {(row.anchor, row.positive): row.negatives for row in mined} == expected
    assert any(row.negatives for row in mined)
    for row in mined:
        scored = [row.positive, *row.negatives] if row.negatives else []
        for text, score in zip(scored, row.scores, strict=True):
            assert score == pytest.approx(float(judge.predict([(row.anchor, text)])[0]), abs=1e-5)


def test_no_form_of_a_positive_or_of_the_query_is_a_negative(encoder: SentenceTransformer) -> None:
    query, positive = "ou est le café", "Le café est au coin."
    twins = ["Le cafe\u0301 est au coin.", "  Le café est au coin. ", "ou est le cafe\u0301"]
    mined = mine(
        encoder,
        [(query, positive), ("autre", "Une autre phrase."), (query, twins[0])],
        HardNegatives(negatives=5, relative_margin=0),
        corpus=[*twins, query, "Les baleines sont des mammifères."],
    )
    assert [(row.anchor, row.positive) for row in mined] == [
        (query, positive),
        ("autre", "Une autre phrase."),
    ]
    others = {"Une autre phrase.", "Les baleines sont des mammifères."}
    assert set(mined[0].negatives) <= others


def test_negatives_that_a_query_has_are_found_for_the_others_alone(
    encoder: SentenceTransformer,
) -> None:
    pairs = [("the first", "An answer."), ("the second", "Another answer.")]
    has = ("the first", "Only here.")
    settings = HardNegatives(negatives=9, relative_margin=0, ranks=(0, 9))
    settings = settings.model_copy(update={"absolute_margin": -3.0, "relative_margin": -1e6})
    first, second = mine(encoder, pairs, settings, negatives=[has])  # no text scores too high
    assert first.negatives == ["Another answer."]
    assert set(second.negatives) == {"An answer.", "Only here."}


def test_a_pair_without_a_negative_has_an_empty_list(encoder: SentenceTransformer) -> None:
    settings = HardNegatives(relative_margin=3)
    assert mine(encoder, [("a query", "an answer")], settings) == [
        Mined("a query", "an answer", [], [])
    ]


def test_cosines_are_float32_also_within_autocast(
    encoder: SentenceTransformer, pairs: Pairs, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 many would be equal."""
    generator = np.random.default_rng(0)
    texts = dict.fromkeys([*corpus, *(text for pair in pairs for text in pair)])
    vector = {text: generator.normal(size=8).astype(np.float32) + 2 for text in texts}

    def embed(texts: list[str], **_: object) -> np.ndarray:
        return np.stack([vector[text] for text in texts])

    monkeypatch.setattr(encoder, "encode_document", embed)
    monkeypatch.setattr(encoder, "encode_query", embed)
    with torch.autocast("cpu", torch.bfloat16):
        mined = mine(encoder, pairs, HardNegatives(relative_margin=0, negatives=5), corpus=corpus)
    for row in mined:
        query, *others = (vector[one] for one in (row.anchor, row.positive, *row.negatives))
        norms = np.linalg.norm(query) * np.linalg.norm(others, axis=1)
        expected = (np.stack(others) @ query / norms)[: len(row.scores)]
        assert row.scores == pytest.approx(expected.tolist(), abs=1e-6)
    assert any(row.scores for row in mined)


def test_a_score_that_is_not_finite_is_an_error(
    encoder: SentenceTransformer, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(texts: list[str], **_: object) -> np.ndarray:
        return np.full((len(texts), 4), np.nan, dtype=np.float32)

    monkeypatch.setattr(encoder, "encode_document", broken)
    monkeypatch.setattr(encoder, "encode_query", broken)
    with pytest.raises(UserError, match="not finite"):
        mine(encoder, pairs, HardNegatives(relative_margin=0))


def test_an_encoder_is_no_reranker(encoder: SentenceTransformer, tmp_path: Path) -> None:
    encoder.save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="no cross-encoder"):
        load_reranker(str(tmp_path))


def test_a_classifier_of_several_labels_is_no_reranker(
    sentences: list[str], tmp_path: Path
) -> None:
    folder = write_reranker(tmp_path / "three", sentences, labels=3)
    with pytest.raises(UserError, match="gives 3 scores for a pair"):
        load_reranker(str(folder))


def test_ranks_must_hold_the_negatives() -> None:
    with pytest.raises(ValidationError, match="leave 1 text for 2 negatives"):
        HardNegatives(ranks=(3, 4), negatives=2)
