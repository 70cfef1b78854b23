"""The loss of k vectors is added to that of the single vector, and both come from one pass."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from llm2comp.errors import UserError
from llm2comp.model import encoder
from llm2comp.model.backbone import load_backbone
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.model.multi_vector.memory_vectors import append_memory_vectors
from llm2comp.recipe import Supervised, load_recipe
from llm2comp.recipe_parts import Memory
from llm2comp.training import pipeline
from llm2comp.training.losses.choose import losses_of

K, TEMPERATURE = 3, 0.1
MINI_BATCHES: dict[str, dict[str, int]] = {
    "plain": {"mini_batch_size": 16},
    "cached": {"mini_batch_size": 3},
    "limited by tokens": {"mini_batch_size": 8, "mini_batch_tokens": 60},
}


@pytest.fixture
def model(tiny_backbone: Path) -> SentenceTransformer:
    body, tokenizer = load_backbone(str(tiny_backbone))
    extended = add_memory_tokens(body, tokenizer, Memory(tokens=K), seed=0)
    made = encoder.assemble(body, extended, K, causal=True)
    made[0].requires_grad_(True)
    return append_memory_vectors(made, "tiny", beside="training").train()


@pytest.fixture
def columns(sentences: list[str]) -> list[list[str]]:
    """Four anchors with a positive each, and six negatives."""
    negatives = [f"{text} {text[:9]}" for text in sentences[4:]] + ["sea", "a coin"]
    return [[text[:15] for text in sentences[:4]], sentences[:4], negatives]


def stage(**options: Any) -> Supervised:
    fixed = {"data": [{"source": "a"}], "steps": 1, "batch_size": 4, "learning_rate": 1.0}
    return Supervised.model_validate(fixed | {"temperature": TEMPERATURE, "vectors": "k"} | options)


def features(model: SentenceTransformer, columns: list[list[str]]) -> list[dict[str, Tensor]]:
    return [dict(model.preprocess(texts)) for texts in columns]


def gradient(model: SentenceTransformer, loss: Tensor) -> Tensor:
    """Return the gradient of the transformer; a cached loss sets it in `backward`."""
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model[0].parameters() if p.grad is not None])


def states(model: SentenceTransformer, text: str) -> Tensor:
    """Return the states of the memory tokens `(k, hidden)`, one text at a time."""
    ids = model.preprocess([text])["input_ids"]
    states: Tensor = model[0].model(input_ids=ids).last_hidden_state[0, -K:]
    return states


def single(one: Tensor, other: Tensor) -> Tensor:
    return normalize(one.mean(0), dim=0) @ normalize(other.mean(0), dim=0)


def max_sim(one: Tensor, other: Tensor) -> Tensor:
    rows, others = normalize(one, dim=1), normalize(other, dim=1)
    best = [torch.stack([row @ candidate for candidate in others]).max() for row in rows]
    return torch.stack(best).mean()


def info_nce(model: SentenceTransformer, columns: list[list[str]]) -> Tensor:
    """Return the sum of both losses, pair by pair."""
    queries = [states(model, text) for text in columns[0]]
    documents = [states(model, text) for texts in columns[1:] for text in texts]
    total = torch.zeros(())
    for score in (single, max_sim):
        scores = [torch.stack([score(q, d) for d in documents]) for q in queries]
        logits = torch.stack(scores) / TEMPERATURE
        total = total + cross_entropy(logits, torch.arange(len(queries)))
    return total


def symmetric(one: Tensor, other: Tensor) -> Tensor:
    return (max_sim(one, other) + max_sim(other, one)) / 2


def cosent(model: SentenceTransformer, columns: list[list[str]], gold: Tensor) -> Tensor:
    pairs = [[states(model, text) for text in texts] for texts in columns[:2]]
    total = torch.zeros(())
    for score in (single, symmetric):
        scores = torch.stack([score(a, b) for a, b in zip(*pairs, strict=True)]) / TEMPERATURE
        wrong = gold[:, None] < gold[None, :]
        differences = (scores[:, None] - scores[None, :])[wrong]
        total = total + torch.logsumexp(torch.cat([torch.zeros(1), differences]), dim=0)
    return total


def require_same(model: SentenceTransformer, value: Tensor, expected: Tensor) -> None:
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    ours, theirs = gradient(model, value), gradient(model, expected)
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()


@pytest.mark.parametrize("kind", list(MINI_BATCHES))
def test_info_nce_and_its_gradient_are_the_sum_of_both(
    model: SentenceTransformer, columns: list[list[str]], kind: str
) -> None:
    rows = {"anchor": ["a"], "positive": ["b"], "negative": [["c", "d"]]}
    data = DatasetDict({"pairs": Dataset.from_dict(rows)})
    losses = losses_of(model, stage(**MINI_BATCHES[kind]), data)
    assert isinstance(losses, dict)
    value = losses["pairs"](features(model, columns), torch.zeros(4))
    require_same(model, value, info_nce(model, columns))


def test_scored_pairs_are_compared_in_both_directions(
    model: SentenceTransformer, columns: list[list[str]]
) -> None:
    rows = {"anchor": ["a"], "positive": ["b"], "score": [1.0]}
    losses = losses_of(model, stage(), DatasetDict({"scored": Dataset.from_dict(rows)}))
    assert isinstance(losses, dict)
    gold = torch.tensor([3.0, 1.0, 2.0, 1.0])
    value = losses["scored"](features(model, columns[:2]), gold)
    require_same(model, value, cosent(model, columns, gold))


def test_a_text_passes_through_the_model_once(
    model: SentenceTransformer, columns: list[list[str]]
) -> None:
    data = DatasetDict({"pairs": Dataset.from_dict({"anchor": ["a"], "positive": ["b"]})})
    losses = losses_of(model, stage(**MINI_BATCHES["plain"]), data)
    assert isinstance(losses, dict)
    read: list[int] = []
    model[0].register_forward_pre_hook(lambda _, inputs: read.append(len(inputs[0]["input_ids"])))
    losses["pairs"](features(model, columns[:2]), torch.zeros(4))
    assert sum(read) == 8


def test_outside_of_training_an_encoder_has_one_vector(model: SentenceTransformer) -> None:
    embeddings = model.encode(["a", "b c"])
    assert embeddings.shape == (2, 32)
    expected = torch.stack([states(model, text) for text in ("a", "b c")]).mean(1)
    torch.testing.assert_close(torch.tensor(embeddings), normalize(expected, dim=1).detach())


def test_the_encoder_that_is_written_is_a_plain_one(tiny_recipe: Path, tmp_path: Path) -> None:
    settings = load_recipe(
        tiny_recipe, ["pretext.steps=1", "supervised.steps=2", "supervised.vectors=k"]
    )
    stages = [settings.stages[0], settings.stages[2]]
    folder = pipeline.train(settings.model_copy(update={"stages": stages}), tmp_path / "run")
    modules = json.loads((folder / "modules.json").read_text())
    names = [module["type"].rpartition(".")[2] for module in modules]
    assert names == ["Transformer", "WordWeights", "Pooling", "Normalize"]
    assert json.loads((folder / "llm2comp.json").read_text())["stages"][1]["vectors"] == "k"


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"matryoshka": [32]}, "matryoshka"),
        ({"guide": "minilm"}, "guide"),
        ({"data": [{"source": "a", "teacher": "minilm"}]}, "teacher"),
    ],
)
def test_what_knows_one_vector_only_is_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=f"vectors: k cannot be trained with {key}"):
        stage(**options)


@pytest.mark.parametrize("key", ["supervised.vectors", "evaluation.vectors"])
@pytest.mark.parametrize("change", ["memory.tokens=1", "pretext.objective=mntp"])
def test_one_memory_token_is_refused_before_anything_is_trained(
    tiny_recipe: Path, tmp_path: Path, change: str, key: str
) -> None:
    more = ["pretext.attention=bidirectional"] if "mntp" in change else []
    with pytest.raises(UserError, match=f"{key}: k needs .*several memory tokens"):
        pipeline.train(load_recipe(tiny_recipe, [f"{key}=k", change, *more]), tmp_path / "run")
    assert not list((tmp_path / "run").glob("*/model.safetensors"))


def test_the_loss_is_no_module_of_the_other(model: SentenceTransformer) -> None:
    """A launcher replaces `model` in a loss and its modules, and it knows one loss."""
    data = DatasetDict({"pairs": Dataset.from_dict({"anchor": ["a"], "positive": ["b"]})})
    losses = losses_of(model, stage(**MINI_BATCHES["plain"]), data)
    assert isinstance(losses, dict)
    assert [type(m) for m in losses["pairs"].children()] == [type(model)]
    assert isinstance(losses["pairs"], nn.Module)
