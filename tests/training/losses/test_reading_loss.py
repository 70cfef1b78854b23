"""Memory that stays readable in stage 3: the loss against a slow one, resuming, and mistakes."""

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import PreTrainedModel

from llm2comp.errors import UserError
from llm2comp.inference.reading.answering import PROMPT, TOKENS
from llm2comp.inference.reading.backbone import require_same_model
from llm2comp.inference.reading.reader import Reader
from llm2comp.model.lineage import Lineage
from llm2comp.model.lora import add_adapter
from llm2comp.recipe import Recipe, Supervised, load_recipe
from llm2comp.recipe_parts import Lora
from llm2comp.training import pipeline
from llm2comp.training.distributed import launch
from llm2comp.training.losses import reading
from llm2comp.training.losses.choose import losses_of
from llm2comp.training.losses.reading import FEWEST, ReadMemory, WithReading
from llm2comp.training.objectives.registry import OBJECTIVES

K, WEIGHT, TEMPERATURE = 4, 0.5, 0.1
MINI_BATCHES: dict[str, dict[str, int]] = {
    "plain": {"mini_batch_size": 8},
    "cached": {"mini_batch_size": 3},
    "limited by tokens": {"mini_batch_size": 8, "mini_batch_tokens": 60},
}


@pytest.fixture(scope="module")
def folder(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage 1 after a few steps."""
    recipe = load_recipe(tiny_recipe, ["pretext.steps=4", "pretext.eval_passages=4"])
    recipe = recipe.model_copy(update={"stages": recipe.stages[:1]})
    out = tmp_path_factory.mktemp("runs") / "tiny"
    pipeline.train(recipe, out)
    return out / "1-pretext"


@pytest.fixture
def reader(folder: Path, tiny_backbone: Path) -> Reader:
    """An encoder with a new LoRA, in training mode, beside its backbone."""
    opened = Reader.open(str(folder), "float32", tiny_backbone)
    opened.encoder.requires_grad_(False)
    add_adapter(opened.encoder[0].model, Lora(dropout=0.0), K)
    opened.encoder.train()
    return opened


@pytest.fixture
def columns(sentences: list[str]) -> list[list[str]]:
    """Eight queries, and for each a passage; two of the passages are too short to be read."""
    long = [f"{one} {other}" for one, other in zip(sentences, sentences[::-1], strict=True)]
    return [[text[:15] for text in sentences], [*long[:2], "A coin.", *long[3:7], "The sea."]]


def features(reader: Reader, columns: list[list[str]]) -> list[dict[str, Tensor]]:
    return [dict(reader.encoder.preprocess(texts)) for texts in columns]


def slow(reader: Reader, query: str, passage: str) -> Tensor:
    """Return `KL(given the passage || given its memory)` of question and answer, one by one."""
    (prompt,) = reader.tokens([PROMPT.format(question=query)])
    (ids,) = reader.tokens([passage])
    model, bos = reader.model, [int(reader.encoder.tokenizer("")["input_ids"][0])]
    said: list[int] = []
    while len(said) < TOKENS:
        logits = model(torch.tensor([[*bos, *ids, *prompt, *said]])).logits
        said.append(int(logits[0, -1].argmax()))
        if said[-1] == reader.tokenizer.eos_token_id or "\n" in reader.decode(said[-1:]):
            break
    after = [*prompt, *said]
    teacher = model(torch.tensor([[*bos, *ids, *after]])).logits[0, len(ids) :].log_softmax(-1)
    memory_ids = reader.encoder.tokenizer("")["input_ids"][-K:]
    states = reader.encoder[0].model(input_ids=torch.tensor([[*bos, *ids, *memory_ids]]))
    memory = states.last_hidden_state[0, -K:]
    inputs = torch.cat([reader.embed(bos), memory, reader.embed(after)])[None]
    student = model(inputs_embeds=inputs).logits[0, K:].log_softmax(-1)
    return (teacher.exp() * (teacher - student)).sum(-1).mean()


def gradient(reader: Reader, loss: Tensor) -> Tensor:
    reader.encoder.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in reader.encoder.parameters() if p.grad is not None])


def stage(**options: Any) -> Supervised:
    return Supervised(
        data=[{"source": "pairs.jsonl"}],
        steps=1,
        batch_size=8,
        learning_rate=1e-3,
        temperature=TEMPERATURE,
        **options,
    )


@pytest.mark.parametrize("kind", list(MINI_BATCHES))
def test_the_loss_and_its_gradient_are_a_slow_sum(
    reader: Reader, columns: list[list[str]], kind: str
) -> None:
    pairs = Dataset.from_dict({"anchor": ["a"], "positive": ["b"]})
    contrastive = losses_of(reader.encoder, stage(**MINI_BATCHES[kind]), pairs)
    assert isinstance(contrastive, nn.Module)
    both = WithReading(contrastive, ReadMemory(reader, OBJECTIVES["distillation"](), 5), WEIGHT)
    parts = both(features(reader, columns), torch.zeros(8))
    ours = gradient(reader, torch.stack(list(parts.values())).sum())

    one, other = (reader.encoder(each)["sentence_embedding"] for each in features(reader, columns))
    scores = normalize(one, dim=-1) @ normalize(other, dim=-1).T / TEMPERATURE
    info_nce = cross_entropy(scores, torch.arange(8))
    lengths = [len(ids) for ids in reader.tokens(columns[1])]
    read = [row for row, length in enumerate(lengths) if length >= FEWEST]
    assert read == [0, 1, 3, 4, 5, 6]
    wanted = torch.stack(
        [slow(reader, columns[0][row].strip(), columns[1][row]) for row in read[:5]]
    ).mean()
    assert wanted > 0.01
    assert parts["contrastive"].item() == pytest.approx(info_nce.item(), rel=1e-4)
    assert parts["reading"].item() == pytest.approx(WEIGHT * wanted.item(), rel=1e-4)
    theirs = gradient(reader, info_nce + WEIGHT * wanted)
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()
    assert all(p.grad is None for p in reader.model.parameters())


def test_a_batch_without_a_long_passage_adds_nothing(reader: Reader) -> None:
    read = ReadMemory(reader, OBJECTIVES["distillation"](), 5)
    assert read(*features(reader, [["sea"], ["The sea."]])).item() == 0


@pytest.mark.parametrize("objective", ["continuation", "reconstruction"])
def test_other_objectives_of_compression_are_read_too(
    reader: Reader, columns: list[list[str]], objective: str
) -> None:
    loss = ReadMemory(reader, OBJECTIVES[objective](), 5)(*features(reader, columns))
    assert loss.item() > 0
    assert gradient(reader, loss).norm() > 0


def recipe_with(tiny_recipe: Path, folder: Path, *overrides: str) -> Recipe:
    """Return stage 3 of the tiny recipe, from a trained stage 1."""
    loaded = load_recipe(tiny_recipe, ["supervised.steps=8", "supervised.save_steps=3", *overrides])
    return loaded.model_copy(update={"stages": [*loaded.stages[:1], *loaded.stages[2:]]})


def train(recipe: Recipe, folder: Path, out: Path) -> Path:
    """Train stage 3 in a run whose stage 1 is done."""
    if not out.exists():
        out.mkdir()
        shutil.copytree(folder, out / "1-pretext")
    pipeline.train(recipe, out)
    return out


READING = ("supervised.reading.weight=2.0", "supervised.reading.passages=3")


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def test_a_stopped_run_ends_with_the_same_bits(
    tiny_recipe: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_with(tiny_recipe, folder, *READING)
    whole = train(recipe, folder, tmp_path / "whole")
    calls = iter(range(100))
    before = WithReading.forward

    def stopping(self: Any, *arguments: Any) -> Any:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return before(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(WithReading, "forward", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, folder, tmp_path / "stopped")
    stopped = train(recipe, folder, tmp_path / "stopped")
    assert weights(stopped) == weights(whole)
    without = train(recipe_with(tiny_recipe, folder), folder, tmp_path / "without")
    assert weights(without) != weights(whole)

    lines = [json.loads(line) for line in (whole / "run.jsonl").read_text().splitlines()]
    read = [line["reading"] for line in lines if "reading" in line]
    assert len(read) == 4
    assert max(read) > 0
    lines = [json.loads(line) for line in (without / "run.jsonl").read_text().splitlines()]
    assert not any("reading" in line for line in lines)

    backbone = recipe.backbone.name
    assert Reader.open(str(whole / "model"), "float32", backbone).notes == []
    (note,) = Reader.open(str(without / "model"), "float32", backbone).notes
    assert "has moved its memory" in note


def test_gradient_checkpointing_changes_nothing(
    tiny_recipe: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enable, enabled = PreTrainedModel.gradient_checkpointing_enable, []

    def record(model: PreTrainedModel, *options: Any, **more: Any) -> None:
        enabled.append(type(model).__name__)
        enable(model, *options, **more)

    monkeypatch.setattr(PreTrainedModel, "gradient_checkpointing_enable", record)
    one, other = (
        train(
            recipe_with(
                tiny_recipe, folder, *READING, "supervised.lora.dropout=0.0",
                "supervised.steps=2", f"supervised.gradient_checkpointing={value}",
            ),
            folder,
            tmp_path / value,
        )
        for value in ("true", "false")
    )  # fmt: skip
    assert enabled == ["LlamaModel"]  # in the run with `true` alone
    first, second = (load_file(out / "model" / "model.safetensors") for out in (one, other))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-4, atol=1e-5)


def test_all_weights_train_in_float32_beside_a_backbone_in_bfloat16(
    tiny_recipe: Path, folder: Path, tmp_path: Path
) -> None:
    """The token embeddings of the encoder are then those of the backbone before rounding."""
    recipe = recipe_with(
        tiny_recipe, folder, *READING, "backbone.dtype=bfloat16", "supervised.steps=2",
        "supervised.lora=null", "supervised.memory_learning_rate=null",
    )  # fmt: skip
    out = train(recipe, folder, tmp_path / "run")
    lines = [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines()]
    assert max(line["reading"] for line in lines if "reading" in line) > 0
    frozen, trained = (load_file(one / "model.safetensors") for one in (folder, out / "model"))
    changed = [name for name, weight in trained.items() if not torch.equal(weight, frozen[name])]
    assert "embed_tokens.weight" in changed


@pytest.mark.parametrize("saved", [None, "bfloat16"])
def test_another_backbone_is_told_apart_in_each_dtype(folder: Path, saved: str | None) -> None:
    lineage = Lineage.read(folder).model_copy(update={"dtype": saved})
    merged = load_file(folder / "model.safetensors")["embed_tokens.weight"]
    own = merged[:-K]
    dtypes = (torch.float32, torch.bfloat16)
    for first, second in product(dtypes, dtypes):
        require_same_model("tiny", lineage, own.to(first), merged.to(second))
        with pytest.raises(UserError, match="the token embeddings differ"):
            require_same_model("tiny", lineage, (1.01 * own).to(first), merged.to(second))


def test_memory_that_cannot_be_read_is_refused_before_stage_1(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(
        tiny_recipe, [*READING, "pretext.objective=mntp", "pretext.attention=bidirectional"]
    )
    with pytest.raises(UserError, match=r"supervised\.reading: tiny has no memory to read"):
        pipeline.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "1-pretext").exists()


def test_several_processes_are_refused(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.world, "size", lambda: 2)
    with pytest.raises(UserError, match=r"supervised\.reading is trained in one process only"):
        launch.require_possible(load_recipe(tiny_recipe, [*READING]), planned=False)


def test_weights_in_4_bits_are_refused(tiny_recipe: Path, folder: Path) -> None:
    recipe = load_recipe(tiny_recipe, [*READING, "backbone.load_in_4bit=true"])
    with pytest.raises(UserError, match=r"supervised\.reading is not trained on weights in 4 bits"):
        reading.require_memory(recipe, Lineage.read(folder))


def test_matryoshka_over_tokens_is_refused_beside_it(tiny_recipe: Path) -> None:
    """It lets the transformer give several rows per text, and reading needs one."""
    with pytest.raises(UserError, match="reading cannot be trained with matryoshka_tokens"):
        load_recipe(tiny_recipe, [*READING, "supervised.matryoshka_tokens=[4,2]"])


def test_without_the_key_the_losses_are_the_same_objects(tiny_recipe: Path) -> None:
    losses = {"a": nn.Identity()}
    context: Any = type("Context", (), {"stage": stage(), "lineage": None})()
    assert reading.with_reading(context, nn.Identity(), losses) is losses  # type: ignore[arg-type]
