"""Batches by tokens: every text once, within the budget, to the stock model's vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from llm2comp.data.length_batching import batch_by_tokens
from llm2comp.evaluation import baselines
from llm2comp.inference.token_batching import WIDTHS, TokenBatched


@pytest.fixture(scope="module", params=["weighted-mean", "echo", "metaeol"])
def model(tiny_backbone: Path, request: pytest.FixtureRequest) -> SentenceTransformer:
    return baselines.build(request.param, tiny_backbone)


@pytest.fixture(scope="module")
def texts(sentences: list[str]) -> list[str]:
    return [" ".join(sentences[: i % 5]) + " " * (i % 3) for i in range(40)]


def _stock(model: SentenceTransformer, texts: list[str], **options: Any) -> Any:
    return SentenceTransformer.encode(model, texts, batch_size=7, **options)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_vectors_are_those_of_the_stock_model(
    model: SentenceTransformer, texts: list[str], batch_size: int
) -> None:
    assert isinstance(model, TokenBatched)
    vectors = model.encode(texts, batch_size=batch_size)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, _stock(model, texts), atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"prompt": "Question: "},
        {"truncate_dim": 8},
        {"output_value": "token_embeddings"},
        {"precision": "binary"},
    ],
    ids=str,
)
def test_options_mean_what_they_mean_to_the_stock_model(
    tiny_backbone: Path, texts: list[str], options: dict[str, Any]
) -> None:
    model = baselines.build("mean", tiny_backbone)
    found, expected = model.encode(texts, **options), _stock(model, texts, **options)
    assert type(found) is type(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_batches_of_many_lengths_have_few_widths(tiny_backbone: Path) -> None:
    model = baselines.build("mean", tiny_backbone)
    assert isinstance(model, TokenBatched)
    model.max_seq_length = 300
    read = {n: model.preprocess([" a" * (n - 1)])["attention_mask"][0] for n in range(2, 320)}
    assert all(mask.sum() == min(n, 300) for n, mask in read.items())
    assert all(len(mask) <= mask.sum() * (1 + 1 / WIDTHS) for mask in read.values())
    widths = {len(mask) for mask in read.values()}
    assert 300 in widths  # no padding for texts that are cut
    assert len(widths) <= 2 * WIDTHS + 4 * WIDTHS  # to 32 tokens, and of each doubling after


def test_what_goes_with_each_token_is_padded_too(tiny_backbone: Path) -> None:
    model = baselines.build("mean", tiny_backbone)
    model.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # BERT's
    features = model.preprocess([" a" * 40])
    shapes = {features[name].shape for name in model.tokenizer.model_input_names}
    assert shapes == {(1, 42)}


def test_one_text_gives_one_vector(model: SentenceTransformer, sentences: list[str]) -> None:
    assert model.encode(sentences[0]).shape == (32,)
    assert model.encode(sentences[:1]).shape == (1, 32)
    assert model.encode([]).shape == (0,)


def test_a_batch_keeps_to_its_budget_and_no_text_is_lost() -> None:
    tokens = np.random.default_rng(0).integers(1, 300, 500)
    batches = list(batch_by_tokens(tokens, 1000))
    assert sorted(row for rows in batches for row in rows) == list(range(500))
    assert all(len(rows) * tokens[rows].max() <= 1000 for rows in batches)
    # As full as can be: the next batch's first text would not have fitted.
    for rows in batches[:-1]:
        assert (len(rows) + 1) * tokens[rows].max() > 1000


def test_a_text_beyond_the_budget_is_a_batch_of_its_own() -> None:
    assert list(batch_by_tokens(np.array([5, 2000, 3000, 6]), 100)) == [[2], [1], [3, 0]]


def test_a_saved_model_is_a_stock_model(tiny_backbone: Path, tmp_path: Path) -> None:
    baselines.build("mean", tiny_backbone).save_pretrained(str(tmp_path))
    assert "TokenBatched" not in (tmp_path / "config_sentence_transformers.json").read_text()
    assert type(SentenceTransformer(str(tmp_path))) is SentenceTransformer
