"""Batches by tokens: every text once, within the budget, with the stock model's embeddings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.module import Module
from sentence_transformers.sentence_transformer.modules import BoW, StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from llm2comp.data.length_batching import batch_by_tokens
from llm2comp.evaluation import baselines
from llm2comp.inference.token_batching import WIDTHS, TokenBatched


@pytest.fixture(scope="module", params=["weighted-mean", "echo", "metaeol"])
def model(tiny_backbone: Path, request: pytest.FixtureRequest) -> SentenceTransformer:
    return baselines.build(request.param, tiny_backbone)


@pytest.fixture(scope="module")
def texts(sentences: list[str]) -> list[str]:
    return [" ".join(sentences[: i % 5]) + " " * (i % 3) for i in range(15)]


def _stock(model: SentenceTransformer, texts: list[str], **options: Any) -> Any:
    return SentenceTransformer.encode(model, texts, batch_size=7, **options)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_embeddings_are_those_of_the_stock_model(
    model: SentenceTransformer, texts: list[str], batch_size: int
) -> None:
    assert isinstance(model, TokenBatched)
    embeddings = model.encode(texts, batch_size=batch_size)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, _stock(model, texts), atol=1e-5)


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
    assert 300 in widths  # texts that are truncated are not padded
    assert len(widths) <= 2 * WIDTHS + 4 * WIDTHS  # up to 32 tokens, then for each doubling


def test_all_features_of_a_token_are_padded(tiny_backbone: Path) -> None:
    model = baselines.build("mean", tiny_backbone)
    model.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # as BERT
    features = model.preprocess([" a" * 40])
    shapes = {features[name].shape for name in model.tokenizer.model_input_names}
    assert shapes == {(1, 42)}


def test_one_text_gives_one_embedding(model: SentenceTransformer, sentences: list[str]) -> None:
    assert model.encode(sentences[0]).shape == (32,)
    assert model.encode(sentences[:1]).shape == (1, 32)
    assert model.encode([]).shape == (0,)


def test_the_old_name_of_the_inputs_works(model: SentenceTransformer, texts: list[str]) -> None:
    np.testing.assert_array_equal(model.encode(sentences=texts), model.encode(texts))


def test_a_batch_size_of_zero_is_refused(model: SentenceTransformer, texts: list[str]) -> None:
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        model.encode(texts, batch_size=0)


def test_the_bar_is_on_standard_error(
    model: SentenceTransformer, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    model.encode(texts, show_progress_bar=True)
    output = capsys.readouterr()
    assert "Batches" in output.err
    assert output.out == ""


def _static(sentences: list[str]) -> Module:
    words = sorted(set(" ".join(sentences).split()))
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(["?", *words])}, "?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return StaticEmbedding(tokenizer, embedding_dim=8)


def _bag_of_words(sentences: list[str]) -> Module:
    return BoW(sorted(set(" ".join(sentences).split())))


@pytest.mark.parametrize("make", [_static, _bag_of_words])
def test_a_model_that_does_not_pad_takes_the_stock_path(
    make: Callable[[list[str]], Module], sentences: list[str]
) -> None:
    model = TokenBatched(modules=[make(sentences)])
    found = model.encode(sentences)
    assert len(found) == len(sentences)
    np.testing.assert_array_equal(found, _stock(model, sentences))


@pytest.mark.parametrize(
    "options",
    [
        {"pool": {"processes": []}, "chunk_size": 3},
        {"device": ["cpu", "cpu"]},
        {"output_value": "token_embeddings"},
        {"precision": "int8"},
    ],
    ids=str,
)
def test_other_calls_reach_the_stock_method_as_they_are(
    tiny_backbone: Path,
    sentences: list[str],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = baselines.build("mean", tiny_backbone)
    calls = []
    monkeypatch.setattr(
        SentenceTransformer, "encode", lambda _, inputs, **given: calls.append((inputs, given))
    )
    model.encode(sentences, batch_size=5, prompt="Question: ", **options)
    ((inputs, given),) = calls
    assert inputs == sentences
    assert given.items() >= (options | {"batch_size": 5, "prompt": "Question: "}).items()


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
    for name in ("config_sentence_transformers.json", "README.md"):
        assert "TokenBatched" not in (tmp_path / name).read_text()
    assert type(SentenceTransformer(str(tmp_path))) is SentenceTransformer
