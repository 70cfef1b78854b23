"""Matryoshka training: its loss is the sum over truncated embeddings, whatever the stage's loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from llm2comp.errors import UserError
from llm2comp.evaluation import baselines
from llm2comp.model.lineage import Lineage
from llm2comp.recipe import Supervised, load_recipe
from llm2comp.training import pipeline
from llm2comp.training.losses.choose import losses_of
from llm2comp.training.losses.matryoshka import matryoshka

DIMS = [8, 32, 4]
TEMPERATURE = 0.1
MINI_BATCHES: dict[str, dict[str, int]] = {
    "plain": {"mini_batch_size": 8},
    "cached": {"mini_batch_size": 3},
    "limited by tokens": {"mini_batch_size": 8, "mini_batch_tokens": 60},
}


@pytest.fixture
def model(tiny_backbone: Path) -> SentenceTransformer:
    return baselines.build("weighted-mean", tiny_backbone).train(False)


def stage(**options: Any) -> Supervised:
    return Supervised(
        data=[{"source": "pairs.jsonl"}],
        steps=1,
        batch_size=8,
        learning_rate=1e-3,
        temperature=TEMPERATURE,
        matryoshka=DIMS,
        **options,
    )


def features(model: SentenceTransformer, sentences: list[str]) -> list[dict[str, Tensor]]:
    halves = [text.split(" ", 4) for text in sentences]
    texts = [" ".join(words[:4]) for words in halves], [words[4] for words in halves]
    return [dict(model.preprocess(list(one))) for one in texts]


def gradient(model: SentenceTransformer, loss: Tensor) -> Tensor:
    """Return the gradient of the attention and MLP weights; a cached loss sets it in `backward`."""
    model.zero_grad()
    loss.backward()
    parameters = [p for name, p in model.named_parameters() if "layers" in name]
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def info_nce(one: Tensor, other: Tensor) -> Tensor:
    return cross_entropy(one @ other.T / TEMPERATURE, torch.arange(len(one)))


def cosent(scores: Tensor) -> Any:
    def loss(one: Tensor, other: Tensor) -> Tensor:
        cosines = (one * other).sum(1) / TEMPERATURE
        wrong = scores[:, None] < scores[None, :]
        differences = (cosines[:, None] - cosines[None, :])[wrong]
        return torch.logsumexp(torch.cat([torch.zeros(1), differences]), dim=0)

    return loss


def literal(model: SentenceTransformer, sentences: list[str], loss: Any) -> Tensor:
    """Return the sum over the dimensions of a loss, written with nothing of the libraries."""
    whole = [model(dict(one))["sentence_embedding"] for one in features(model, sentences)]
    total: Tensor = sum(
        (loss(*(normalize(one[:, :dim], dim=-1) for one in whole)) for dim in DIMS),
        start=torch.zeros(()),
    )
    return total


@pytest.mark.parametrize("kind", list(MINI_BATCHES))
def test_the_loss_and_its_gradient_are_the_sum_over_truncated_embeddings(
    model: SentenceTransformer, sentences: list[str], kind: str
) -> None:
    settings = stage(**MINI_BATCHES[kind])
    pairs = Dataset.from_dict({"anchor": ["a"], "positive": ["b"]})
    losses = losses_of(model, settings, pairs)
    nested = matryoshka(model, losses, settings.matryoshka)
    assert isinstance(nested, nn.Module)
    value = nested(features(model, sentences), torch.zeros(8))
    ours = gradient(model, value)
    expected = literal(model, sentences, info_nce)
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    theirs = gradient(model, expected)
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


def test_scored_pairs_are_nested_too(model: SentenceTransformer, sentences: list[str]) -> None:
    scores = torch.arange(8.0)
    nested = matryoshka(model, CoSENTLoss(model, scale=1 / TEMPERATURE), DIMS)
    assert isinstance(nested, nn.Module)
    value = nested(features(model, sentences), scores)
    ours = gradient(model, value)
    expected = literal(model, sentences, cosent(scores))
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    theirs = gradient(model, expected)
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


@pytest.mark.parametrize("kind", list(MINI_BATCHES))
def test_sources_that_share_a_loss_are_nested_once(
    model: SentenceTransformer, sentences: list[str], kind: str
) -> None:
    """A cached loss that is wrapped twice would truncate truncated embeddings."""
    settings = stage(**MINI_BATCHES[kind])
    pairs = Dataset.from_dict({"anchor": ["a"], "positive": ["b"]})
    scored = Dataset.from_dict({"anchor": ["a"], "positive": ["b"], "score": [1.0]})
    data = DatasetDict({"one": pairs, "two": pairs, "scored": scored})
    nested = matryoshka(model, losses_of(model, settings, data), settings.matryoshka)
    assert isinstance(nested, dict)
    expected = literal(model, sentences, info_nce).item()
    value = nested["two"](features(model, sentences), torch.zeros(8)).item()
    assert value == pytest.approx(expected, rel=1e-4)
    assert nested["scored"].get_config_dict()["loss"] == "CoSENTLoss"


def test_no_dimensions_change_nothing(model: SentenceTransformer) -> None:
    loss = CoSENTLoss(model)
    assert matryoshka(model, loss, None) is loss


def test_lineage_and_card_say_what_the_last_stage_trained(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    steps = [f"{name}.steps=2" for name in ("pretext", "unsupervised", "supervised")]
    nested = [
        "unsupervised.matryoshka=[32, 8]",
        "supervised.matryoshka=[4, 32, 16]",
        "supervised.mini_batch_size=4",
    ]
    folder = pipeline.train(load_recipe(tiny_recipe, [*steps, *nested]), tmp_path / "run")
    lineage = Lineage.read(folder)
    assert [stage.matryoshka for stage in lineage.stages] == [None, [32, 8], [4, 32, 16]]
    assert lineage.matryoshka == [4, 32, 16]
    assert lineage.until(2).matryoshka == [32, 8]
    assert lineage.until(1).matryoshka == []
    card = (folder / "README.md").read_text()
    assert "first 4, 16 beside the whole (Matryoshka)" in card
    assert "truncate_dim=16, normalize_embeddings=True" in card
    assert "| contrastive, Matryoshka 32, 8 |" in card
    assert "| contrastive, Matryoshka 4, 32, 16 |" in card
    plain = (tmp_path / "run" / "1-pretext" / "README.md").read_text()
    assert "Matryoshka" not in plain


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ("[64, 32, 8]", "supervised.matryoshka: 64 is more than the 32 dimensions of an embedding"),
        ("[16, 8]", "supervised.matryoshka: the whole embedding would not be trained; add 32"),
        ("[32, 8, 8]", "matryoshka: .*8 is there twice"),
        ("[32, 0]", "matryoshka"),
        ("[]", "matryoshka"),
    ],
)
def test_wrong_dimensions_are_one_line_before_the_first_step(
    tiny_recipe: Path, tmp_path: Path, dims: str, message: str
) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match=message) as error:
        pipeline.train(load_recipe(tiny_recipe, [f"supervised.matryoshka={dims}"]), out)
    assert "\n" not in str(error.value)
    assert not list(out.rglob("*.safetensors"))
