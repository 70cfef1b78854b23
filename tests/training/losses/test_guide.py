"""A guide masks what it scores above the positive, and nothing else."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedGISTEmbedLoss,
    GISTEmbedLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)

from llm2comp.model import encoder
from llm2comp.model.backbone import load_backbone
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.recipe import Supervised
from llm2comp.recipe_parts import Memory
from llm2comp.training.losses.choose import guided, losses_of
from llm2comp.training.losses.matryoshka import matryoshka
from llm2comp.training.losses.token_limited import TokenLimitedGIST


@pytest.fixture(scope="module")
def model(tiny_backbone: Path) -> SentenceTransformer:
    body, tokenizer = load_backbone(str(tiny_backbone))
    extended = add_memory_tokens(body, tokenizer, Memory(), seed=0)
    return encoder.assemble(body, extended, 8, causal=True)


def stage(**settings: Any) -> Supervised:
    fixed = {"data": [{"source": "a"}], "steps": 1, "batch_size": 4, "learning_rate": 1.0}
    return Supervised.model_validate(fixed | settings)


def batch(model: SentenceTransformer, columns: list[list[str]]) -> list[dict[str, Any]]:
    return [model.preprocess(texts) for texts in columns]


@pytest.fixture(scope="module")
def columns(sentences: list[str]) -> list[list[str]]:
    """Four anchors with a positive and a negative each, of different lengths."""
    return [
        [text[:15] for text in sentences[:4]],
        sentences[:4],
        [f"{text} {text}" for text in sentences[4:]],
    ]


@pytest.mark.parametrize("limits", [{"mini_batch_size": 2}, {"mini_batch_tokens": 60}], ids=str)
def test_the_loss_is_the_stock_loss_with_the_guide(
    model: SentenceTransformer, bert: Path, columns: list[list[str]], limits: dict[str, int]
) -> None:
    guide = SentenceTransformer(str(bert), device="cpu")
    loss = guided(model, stage(**limits), guide)
    assert isinstance(loss, TokenLimitedGIST) == ("mini_batch_tokens" in limits)
    stock = GISTEmbedLoss(
        model, guide, temperature=0.05, contrast_anchors=False, contrast_positives=False
    )
    plain = MultipleNegativesRankingLoss(model, scale=20)
    found, expected, without = (
        one(batch(model, columns), None).item() for one in (loss, stock, plain)
    )
    assert found == pytest.approx(expected, rel=1e-5)
    assert found < without - 1e-3, "nothing was masked"


def test_a_guide_that_masks_nothing_leaves_infonce(
    model: SentenceTransformer, columns: list[list[str]]
) -> None:
    guide = copy.deepcopy(model)
    loss = guided(model, stage(), guide)
    same = [columns[0], columns[0], columns[2]]  # the positive is the anchor: none is nearer
    plain = MultipleNegativesRankingLoss(model, scale=20)
    found, expected = (one(batch(model, same), None).item() for one in (loss, plain))
    assert found == pytest.approx(expected, rel=1e-4)


def test_what_the_guide_reads_is_the_text(
    model: SentenceTransformer, bert: Path, columns: list[list[str]], monkeypatch: Any
) -> None:
    guide = SentenceTransformer(str(bert), device="cpu")
    loss = guided(model, stage(), guide)
    read: list[str] = []
    original = guide.preprocess
    monkeypatch.setattr(guide, "preprocess", lambda t, *a: (read.extend(t), original(t, *a))[1])
    loss(batch(model, columns), None)
    assert read == [text for column in columns for text in column]


@pytest.mark.parametrize("limits", [{"mini_batch_size": 8}, {"mini_batch_tokens": 400}], ids=str)
@pytest.mark.parametrize(
    ("tokens", "add_bos"), [(2, None), (12, None), (8, False)], ids=["fewer", "more", "no BOS"]
)
def test_a_guide_with_other_memory_tokens_or_another_bos_reads_the_text_in_its_own_way(
    model: SentenceTransformer,
    tiny_backbone: Path,
    columns: list[list[str]],
    tokens: int,
    add_bos: bool | None,
    limits: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model, "max_seq_length", 200)  # training may read fewer tokens
    body, tokenizer = load_backbone(str(tiny_backbone))
    memory = Memory(tokens=tokens)
    extended = add_memory_tokens(body, tokenizer, memory, seed=0, add_bos=add_bos)
    guide = encoder.assemble(body, extended, tokens, causal=True)
    loss = guided(model, stage(**limits), guide)
    assert isinstance(loss, CachedGISTEmbedLoss)
    for texts in columns:
        features = model.preprocess(texts)
        found = torch.cat(
            [part for _, part, _ in loss.embed_minibatch_iter(features, False, False)]
        )
        expected = guide.encode(texts, convert_to_tensor=True)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_rows_may_have_different_numbers_of_negatives(
    model: SentenceTransformer, bert: Path, columns: list[list[str]]
) -> None:
    guide = SentenceTransformer(str(bert), device="cpu")
    loss = guided(model, stage(), guide)
    anchors, positives, negatives = columns
    many = [anchors, positives, [*negatives, *(text[:9] for text in negatives)]]
    found = loss(batch(model, many), None).item()
    candidates = [*positives, *many[2]]
    logits = model.similarity(model.encode(anchors), model.encode(candidates)) * 20
    judged = guide.similarity(guide.encode(anchors), guide.encode(candidates))
    masked = judged > judged.diagonal()[:, None]
    expected = torch.nn.functional.cross_entropy(
        logits.masked_fill(masked, -torch.inf), torch.arange(4)
    )
    assert found == pytest.approx(expected.item(), rel=1e-4)


def test_matryoshka_adds_the_losses_of_truncated_embeddings_and_the_guide_stays_whole(
    model: SentenceTransformer, bert: Path, columns: list[list[str]]
) -> None:
    guide = SentenceTransformer(str(bert), device="cpu")
    options = {"temperature": 0.05, "contrast_anchors": False, "contrast_positives": False}
    stock = MatryoshkaLoss(model, GISTEmbedLoss(model, guide, **options), [32, 8])
    ours = matryoshka(model, guided(model, stage(), guide), [32, 8])
    assert isinstance(ours, MatryoshkaLoss)
    found, expected = (one(batch(model, columns), None).item() for one in (ours, stock))
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_guide_does_not_train(model: SentenceTransformer, bert: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = DatasetDict({"a": Dataset.from_dict({"anchor": ["a"], "positive": ["b"]})})
    losses = losses_of(model, stage(guide=str(bert)), rows)
    assert isinstance(losses, dict)
    guide = losses["a"].guide
    assert not any(parameter.requires_grad for parameter in guide.parameters())
    assert not any(module.training for module in guide.modules())
