"""Rows with any number of negatives in one batch, and as many in each of several processes."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from rich.console import Console
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)

from llm2comp import recipe
from llm2comp.training import pipeline
from llm2comp.training.losses.choose import losses_of
from llm2comp.training.losses.length_sorted import LengthSorted
from llm2comp.training.losses.token_limited import TokenLimitedInfoNCE

ROWS: list[dict[str, Any]] = [
    {"anchor": "one", "positive": "the first", "negative": ["a", "bb", "a long one"]},
    {"anchor": "two", "positive": "the second", "negative": []},
    {"anchor": "three", "positive": "the third", "negative": ["other"], "positives": [1, 2]},
    {"anchor": "four", "positive": "the fourth", "negative": None},
    {"anchor": "five", "positive": "the fifth", "negative": "text"},
]
SCALE = 20.0


def test_negatives_become_one_column_and_positives_are_not_read() -> None:
    def read(texts: list[str], **_: object) -> dict[str, list[str]]:
        return {"texts": texts}

    batch = LengthSorted(preprocess_fn=read)(ROWS)
    assert sorted(batch["negative_texts"]) == ["a", "a long one", "bb", "other", "text"]
    assert len(batch["anchor_texts"]) == len(batch["positive_texts"]) == 5
    assert set(batch) == {"anchor_texts", "positive_texts", "negative_texts"}
    assert "negative_texts" not in LengthSorted(preprocess_fn=read)(ROWS[1:2] + ROWS[3:4])


@pytest.fixture(scope="module")
def encoder(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    settings = recipe.load_recipe(tiny_recipe, ["pretext.steps=1"])
    settings = settings.model_copy(update={"stages": settings.stages[:1]})
    run = tmp_path_factory.mktemp("run") / "run"
    folder = pipeline.train(settings, run, Console(quiet=True))
    return SentenceTransformer(str(folder), device="cpu").eval()


@pytest.mark.parametrize(
    "of",
    [
        MultipleNegativesRankingLoss,
        partial(CachedMultipleNegativesRankingLoss, mini_batch_size=2),
        partial(TokenLimitedInfoNCE, tokens=20, mini_batch_size=3),
    ],
    ids=["plain", "cached", "token limited"],
)
def test_the_loss_counts_every_negative_of_a_batch_for_each_anchor(
    encoder: SentenceTransformer, of: Any
) -> None:
    batch = LengthSorted(preprocess_fn=encoder.preprocess)(ROWS)
    features = [
        {key: batch[f"{column}_{key}"] for key in ("input_ids", "attention_mask")}
        for column in ("anchor", "positive", "negative")
    ]
    with torch.enable_grad():
        found = of(encoder, scale=SCALE)(features, torch.empty(0)).item()
    anchors = encoder.encode([row["anchor"] for row in ROWS])
    positives = encoder.encode([row["positive"] for row in ROWS])
    negatives = encoder.encode(["a", "bb", "a long one", "other", "text"])
    losses = []
    for place, anchor in enumerate(anchors):
        logits = SCALE * np.concatenate([positives, negatives]) @ anchor
        losses.append(np.log(np.exp(logits).sum()) - logits[place])
    assert found == pytest.approx(np.mean(losses), rel=1e-4)


def test_a_batch_that_fits_without_its_negatives_alone_is_cached(
    encoder: SentenceTransformer,
) -> None:
    stage = recipe.Supervised(
        data=[recipe.DataSource(source="a.jsonl")],
        steps=1,
        batch_size=8,
        mini_batch_size=16,
        learning_rate=1.0,
    )
    rows = {"anchor": ["a"], "positive": ["p"]}
    for negatives, cached in ([["n"] * 2], False), ([["n"] * 3], True):
        data = DatasetDict({"a": Dataset.from_dict(rows | {"negative": negatives})})
        losses = losses_of(encoder, stage, data)
        assert isinstance(losses, dict)
        assert isinstance(losses["a"], CachedMultipleNegativesRankingLoss) == cached
