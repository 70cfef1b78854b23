"""Matryoshka over memory tokens: the loss is the sum over encoders that append fewer tokens."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from llm2comp.errors import UserError
from llm2comp.model import encoder
from llm2comp.model.backbone import load_backbone
from llm2comp.model.lineage import Lineage
from llm2comp.model.matryoshka.nested_tokens import append_nested_tokens
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.recipe import Supervised, load_recipe
from llm2comp.recipe_parts import Memory
from llm2comp.training import pipeline
from llm2comp.training.contrastive import ContrastiveTrainer
from llm2comp.training.losses import choose
from llm2comp.training.losses.choose import losses_of

K, COUNTS, TEMPERATURE = 4, [1, 4, 2], 0.1
MINI_BATCHES: dict[str, dict[str, int]] = {
    "plain": {"mini_batch_size": 64},
    "cached": {"mini_batch_size": 3},
    "limited by tokens": {"mini_batch_size": 8, "mini_batch_tokens": 60},
}
TRAINED = ["pretext.steps=1", "unsupervised.steps=2", "supervised.steps=4"]


@pytest.fixture(params=[True, False], ids=["causal", "bidirectional"])
def model(request: pytest.FixtureRequest, tiny_backbone: Path) -> SentenceTransformer:
    body, tokenizer = load_backbone(str(tiny_backbone))
    extended = add_memory_tokens(body, tokenizer, Memory(tokens=K), seed=0)
    made = encoder.assemble(body, extended, K, causal=request.param)
    made[0].requires_grad_(True)
    append_nested_tokens(made, "tiny", COUNTS)
    return made.train()


@pytest.fixture
def columns(sentences: list[str]) -> list[list[str]]:
    """Four anchors with a positive each, and six negatives."""
    negatives = [f"{text} {text[:9]}" for text in sentences[4:]] + ["sea", "a coin"]
    return [[text[:15] for text in sentences[:4]], sentences[:4], negatives]


def stage(**options: Any) -> Supervised:
    fixed = {"data": [{"source": "a"}], "steps": 1, "batch_size": 4, "learning_rate": 1.0}
    return Supervised.model_validate(
        fixed | {"temperature": TEMPERATURE, "matryoshka_tokens": COUNTS} | options
    )


def features(model: SentenceTransformer, columns: list[list[str]]) -> list[dict[str, Tensor]]:
    return [dict(model.preprocess(texts)) for texts in columns]


def gradient(model: SentenceTransformer, loss: Tensor) -> Tensor:
    """Return the gradient of the transformer; a cached loss sets it in `backward`."""
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model[0].parameters() if p.grad is not None])


def not_appended(model: SentenceTransformer, text: str, count: int) -> Tensor:
    """Return the embedding of a text after which only the first memory tokens stand."""
    ids = model.preprocess([text])["input_ids"]
    ids = ids[:, : ids.shape[1] - K + count]
    states = model[0].model(input_ids=ids).last_hidden_state[0, -count:]
    return normalize(states.mean(0), dim=0)


def slow_info_nce(model: SentenceTransformer, columns: list[list[str]]) -> Tensor:
    """Return the sum over the counts, one text at a time."""
    total = torch.zeros(())
    for count in COUNTS:
        queries = torch.stack([not_appended(model, text, count) for text in columns[0]])
        texts = [text for column in columns[1:] for text in column]
        documents = torch.stack([not_appended(model, text, count) for text in texts])
        logits = queries @ documents.T / TEMPERATURE
        total = total + cross_entropy(logits, torch.arange(len(queries)))
    return total


def slow_cosent(model: SentenceTransformer, columns: list[list[str]], gold: Tensor) -> Tensor:
    total = torch.zeros(())
    for count in COUNTS:
        sides = [torch.stack([not_appended(model, t, count) for t in one]) for one in columns]
        scores = (sides[0] * sides[1]).sum(1) / TEMPERATURE
        differences = (scores[:, None] - scores[None, :])[gold[:, None] < gold[None, :]]
        total = total + torch.logsumexp(torch.cat([torch.zeros(1), differences]), dim=0)
    return total


def require_same(model: SentenceTransformer, value: Tensor, expected: Tensor) -> None:
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    ours, theirs = gradient(model, value), gradient(model, expected)
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()


def loss_of(model: SentenceTransformer, column: dict[str, Any], **options: Any) -> nn.Module:
    rows = {"anchor": ["a"], "positive": ["b"]} | column
    losses = losses_of(model, stage(**options), DatasetDict({"rows": Dataset.from_dict(rows)}))
    assert isinstance(losses, dict)
    return losses["rows"]


def test_to_mask_tokens_is_not_to_append_them(
    model: SentenceTransformer, sentences: list[str]
) -> None:
    """In a batch with padding, whatever the attention is."""
    texts = [*sentences, "", "sea"]
    rows = model(dict(model.preprocess(texts)))["sentence_embedding"].unflatten(1, (3, -1))
    for number, count in enumerate(sorted(COUNTS, reverse=True)):
        alone = torch.stack([not_appended(model, text, count) for text in texts])
        torch.testing.assert_close(rows[:, number], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", list(MINI_BATCHES))
def test_info_nce_and_its_gradient_are_the_sum_over_the_counts(
    model: SentenceTransformer, columns: list[list[str]], kind: str
) -> None:
    loss = loss_of(model, {"negative": [["c", "d"]]}, **MINI_BATCHES[kind])
    value = loss(features(model, columns), torch.zeros(4))
    require_same(model, value, slow_info_nce(model, columns))


def test_scored_pairs_are_nested_too(model: SentenceTransformer, columns: list[list[str]]) -> None:
    gold = torch.tensor([3.0, 1.0, 2.0, 1.0])
    value = loss_of(model, {"score": [1.0]})(features(model, columns[:2]), gold)
    require_same(model, value, slow_cosent(model, columns[:2], gold))


def test_vectors_of_a_teacher_are_learnt_by_each_count(
    model: SentenceTransformer, columns: list[list[str]]
) -> None:
    labels = normalize(torch.randn(4, 2, 32, generator=torch.Generator().manual_seed(0)), dim=2)
    loss = loss_of(model, {"label": labels[:1].tolist()})
    value = loss(features(model, columns[:2]), labels)
    each = [
        1 - not_appended(model, text, count) @ labels[row, side]
        for count in COUNTS
        for side in (0, 1)
        for row, text in enumerate(columns[side])
    ]
    require_same(model, value, torch.stack(each).sum() / 8)


def test_pairs_of_one_dataset_are_nested(
    model: SentenceTransformer, columns: list[list[str]]
) -> None:
    """Stage 2 has one dataset, without a name."""
    loss = losses_of(model, stage(), Dataset.from_dict({"anchor": ["a"], "positive": ["b"]}))
    assert isinstance(loss, nn.Module)
    value = loss(features(model, columns[:2]), torch.zeros(4))
    require_same(model, value, slow_info_nce(model, columns[:2]))


def test_sources_that_share_a_loss_are_nested_once(
    model: SentenceTransformer, columns: list[list[str]]
) -> None:
    pairs = Dataset.from_dict({"anchor": ["a"], "positive": ["b"]})
    losses = losses_of(model, stage(), DatasetDict({"one": pairs, "two": pairs}))
    assert isinstance(losses, dict)
    value = losses["two"](features(model, columns[:2]), torch.zeros(4))
    assert value.item() == pytest.approx(slow_info_nce(model, columns[:2]).item(), rel=1e-5)


def test_a_causal_encoder_reads_a_text_once_and_no_other_reads_more_at_once(
    model: SentenceTransformer, columns: list[list[str]]
) -> None:
    read: list[int] = []
    body = model[0].model
    body.get_input_embeddings().register_forward_pre_hook(
        lambda _, inputs: read.append(len(inputs[0]))
    )
    loss = loss_of(model, {}, mini_batch_size=3)
    loss(features(model, columns[:2]), torch.zeros(4))
    causal = bool(body.config.is_causal)
    assert sum(read) == (8 if causal else 8 * len(COUNTS))
    assert max(read) == 3


def test_outside_of_training_an_encoder_has_one_embedding(model: SentenceTransformer) -> None:
    embeddings = torch.tensor(model.encode(["a", "b c"]))
    expected = torch.stack([not_appended(model, text, K) for text in ("a", "b c")])
    torch.testing.assert_close(embeddings, expected.detach(), rtol=0, atol=1e-6)


def test_the_folder_records_the_counts_and_holds_a_plain_encoder(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    keys = [f"{name}.matryoshka_tokens=[1, 2]" for name in ("unsupervised", "supervised")]
    settings = load_recipe(tiny_recipe, [*TRAINED, *keys, "memory.tokens=2"])
    lineage = Lineage.read(pipeline.train(settings, tmp_path / "run"))
    assert [stage.matryoshka_tokens for stage in lineage.stages] == [None, [1, 2], [1, 2]]
    assert lineage.token_counts == [2, 1]
    assert lineage.until(1).token_counts == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("[4, 2, 1]", "supervised.matryoshka_tokens: 4 is more than the 2 memory tokens"),
        ("[1]", "supervised.matryoshka_tokens: .*would not be trained; add 2"),
        ("[2, 1, 1]", "matryoshka_tokens: .*1 is there twice"),
        ("[2, 0]", r"matryoshka_tokens\.1: must be greater than 0 \(got 0\)"),
        ("[]", "matryoshka_tokens: List should have at least 1 item"),
    ],
)
def test_counts_that_cannot_be_trained_are_refused_before_training(
    tiny_recipe: Path, tmp_path: Path, change: str, message: str
) -> None:
    keys = ["memory.tokens=2", f"supervised.matryoshka_tokens={change}"]
    with pytest.raises(UserError, match=message):
        pipeline.train(load_recipe(tiny_recipe, keys), tmp_path / "run")
    assert not list((tmp_path / "run").glob("*/model.safetensors"))


@pytest.mark.parametrize("change", ["memory.tokens=1", "pretext.objective=mntp"])
def test_an_encoder_without_several_tokens_is_refused(
    tiny_recipe: Path, tmp_path: Path, change: str
) -> None:
    more = ["pretext.attention=bidirectional"] if "mntp" in change else []
    keys = [change, "supervised.matryoshka_tokens=[1]", *more]
    with pytest.raises(UserError, match="matryoshka_tokens: .*several memory tokens"):
        pipeline.train(load_recipe(tiny_recipe, keys), tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matryoshka": [32]}, "matryoshka_tokens cannot be trained with matryoshka"),
        ({"vectors": "k"}, "vectors: k cannot be trained with matryoshka_tokens"),
    ],
)
def test_what_nests_otherwise_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stage(**options)


def test_a_run_that_goes_on_equals_one_that_was_not_stopped(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In stage 2, whose dropout must be that of each step."""
    keys = ["memory.tokens=2", "unsupervised.matryoshka_tokens=[2, 1]"]
    steps = ["pretext.steps=1", "unsupervised.steps=4", "unsupervised.save_steps=2"]
    settings = load_recipe(tiny_recipe, [*keys, *steps])
    settings = settings.model_copy(update={"stages": settings.stages[:2]})
    whole = pipeline.train(settings, tmp_path / "whole")
    compute, calls = ContrastiveTrainer.compute_loss, itertools.count(1)

    def stop_at_the_fourth(*args: Any, **options: Any) -> Any:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return compute(*args, **options)

    monkeypatch.setattr(ContrastiveTrainer, "compute_loss", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        pipeline.train(settings, tmp_path / "stopped")
    monkeypatch.undo()
    resumed = pipeline.train(settings, tmp_path / "stopped")
    weights = [load_file(one / "model.safetensors") for one in (whole, resumed)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=0)


def test_a_guide_sees_whole_texts(
    model: SentenceTransformer,
    tiny_backbone: Path,
    sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of equal texts it scores nothing above the positive, so the loss is that without a guide."""
    body, tokenizer = load_backbone(str(tiny_backbone))
    extended = add_memory_tokens(body, tokenizer, Memory(tokens=K), seed=1)
    guide = encoder.assemble(body, extended, K, causal=True).requires_grad_(False).train(False)
    monkeypatch.setattr(choose, "_guide", lambda *_: guide)
    equal = [sentences[:4], sentences[:4]]
    loss = loss_of(model, {}, guide="a guide", mini_batch_size=3)
    value = loss(features(model, equal), torch.zeros(4))
    require_same(model, value, slow_info_nce(model, equal))


def test_held_out_rows_are_measured_with_all_tokens(tiny_recipe: Path, tmp_path: Path) -> None:
    """With dropout too, which stage 2 needs for its two views."""
    measured = []
    for name, keys in (("plain", []), ("nested", ["unsupervised.matryoshka_tokens=[2, 1]"])):
        steps = ["pretext.steps=1", "unsupervised.steps=1", "memory.tokens=2"]
        settings = load_recipe(tiny_recipe, [*steps, *keys])
        settings = settings.model_copy(update={"stages": settings.stages[:2]})
        pipeline.train(settings, tmp_path / name)
        lines = (tmp_path / name / "run.jsonl").read_text().splitlines()
        written = [one for one in map(json.loads, lines) if one.get("stage") == "unsupervised"]
        measured += [one["held_out"] for one in written if "held_out" in one and one["step"] == 0]
    assert len(measured) == 2
    assert measured[0] == measured[1]
