"""Each family goes through the three stages, and is the original model wherever it must be."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import FAMILIES
from packaging.version import Version
from peft import LoraConfig
from rich.console import Console
from safetensors.torch import load_file
from tiny_model import ATTENTIONS, Family
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from llm2comp.errors import UserError
from llm2comp.inference.load import load
from llm2comp.model import encoder
from llm2comp.model.adapter_checks import check_two_views
from llm2comp.model.causal_lm.parts import token_table
from llm2comp.model.compressor import Compressor
from llm2comp.model.lora import add_adapter
from llm2comp.recipe import Pretext, Recipe, Unsupervised
from llm2comp.recipe_parts import Lora
from llm2comp.training import contrastive
from llm2comp.training.monitoring.run_log import RunLog
from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.distillation import Distillation
from llm2comp.training.pipeline import train
from llm2comp.training.pretext import _compressor, _extended_backbone
from llm2comp.training.stage_context import StageContext

K = 3
IDS = torch.randint(3, 300, (1, 40), generator=torch.Generator().manual_seed(0))
SHORT = 6
"""Tokens of a text that is shorter than any window. `IDS` is longer."""

TESTED = Version("5.23")
"""From this version of transformers on, no family is refused that is not expected to be."""

Stock = Callable[[Path, list[str]], dict[str, Any]]


def cases(*, refused: bool) -> list[Any]:
    """Return the families and attentions that must work, or those that must be refused."""
    return [
        pytest.param(
            (family, attention),
            id=f"{family.name}-{attention}",
            marks=[] if family.core else [pytest.mark.exhaustive],
        )
        for family in FAMILIES
        for attention in ATTENTIONS
        if family.is_known and bool(family.refusal(attention)) == refused
    ]


@dataclass(frozen=True)
class Trained:
    """A run of three stages.

    Attributes:
        backbone: folder of the tiny model.
        recipe: of the run.
        run: folder of the run.
    """

    backbone: Path
    recipe: Recipe
    run: Path

    def original(self) -> PreTrainedModel:
        """Return the language model as stock transformers loads it."""
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(self.backbone)
        return model.train(False)


@pytest.fixture(scope="module", params=cases(refused=False))
def trained(
    request: pytest.FixtureRequest, backbone: Callable[[Family], Path], data: Path
) -> Trained:
    family, attention = request.param
    folder = backbone(family)
    recipe = make_recipe(folder, data, attention)
    run = folder / attention
    run.mkdir()
    try:
        with (run / "console.txt").open("w") as console:
            train(recipe, run / "run", Console(file=console))
    except UserError as error:
        if Version(transformers.__version__) < TESTED:
            pytest.skip(str(error))
        raise
    return Trained(folder, recipe, run / "run")


@pytest.fixture(scope="module")
def untrained(trained: Trained) -> tuple[Compressor, PreTrainedTokenizerBase]:
    """What stage 1 trains, before its first step, in training mode; tests must not change it."""
    stage = trained.recipe.stages[0]
    assert isinstance(stage, Pretext)
    model, tokenizer, *_ = _extended_backbone(trained.recipe, stage, torch.float32)
    return _compressor(trained.recipe, stage, model, tokenizer).train(), tokenizer


def make_recipe(backbone: Path, data: Path, attention: str) -> Recipe:
    """Return three stages of two steps, with the default targets of LoRA."""
    common = {"steps": 2, "learning_rate": 1e-2, "log_steps": 2, "lora": {"r": 2}}
    texts = [{"source": str(data / "texts.txt")}]
    return Recipe.model_validate(
        {
            "name": "tiny",
            "backbone": {"name": str(backbone), "dtype": "float32"},
            "memory": {"tokens": K},
            "stages": [
                {
                    "stage": "pretext",
                    "data": texts,
                    "attention": attention,
                    "passages": {"min_chars": 10, "max_tokens": 48, "crop": True},
                    "split": {"low": 24, "high": 32},
                    "batch_size": 2,
                    "eval_passages": 2,
                    **common,
                },
                {
                    "stage": "unsupervised",
                    "data": texts,
                    "batch_size": 4,
                    "eval_pairs": 0,
                    **common,
                },
                {
                    "stage": "supervised",
                    "data": [{"source": str(data / "pairs.jsonl")}],
                    "batch_size": 4,
                    "mini_batch_size": 2,
                    "eval_pairs": 0,
                    **common,
                },
            ],
            "evaluation": {"tasks": []},
        }
    )


def assert_same(first: Any, second: Any, tolerance: float = 1e-4) -> None:
    """Compare two arrays `(n, ...)` row by row, relative to the norm of the row."""
    first, second = torch.as_tensor(first).float(), torch.as_tensor(second).float()
    assert first.shape == second.shape
    difference = (first - second).flatten(1).norm(dim=1) / second.flatten(1).norm(dim=1)
    assert difference.max() < tolerance


@torch.no_grad()
def test_stock_libraries_give_the_embeddings_of_the_model_that_was_trained(
    trained: Trained,
    untrained: tuple[Compressor, PreTrainedTokenizerBase],
    stock: Stock,
    texts: list[str],
) -> None:
    compressor, tokenizer = copy.deepcopy(untrained)
    compressor.load_adapter(trained.run / "1-pretext" / encoder.ADAPTER)
    compressor.train(False)
    rows = tokenizer(texts, padding=True, return_tensors="pt")
    memory = compressor.compress(rows["input_ids"], rows["attention_mask"]).mean(1)
    answer = stock(trained.run / "1-pretext", texts)
    assert_same(answer["together"], answer["alone"])
    assert_same(answer["together"], nn.functional.normalize(memory, dim=-1))
    assert answer["dimension"] == memory.shape[1]
    cosines = torch.tensor(answer["together"]) @ torch.tensor(answer["together"]).T
    assert cosines.fill_diagonal_(0).max() < 0.9999


def test_the_last_folder_is_read_alike_by_all(
    trained: Trained, stock: Stock, texts: list[str]
) -> None:
    answer = stock(trained.run / "model", texts)
    assert_same(answer["together"], answer["alone"])
    assert_same(load(trained.run / "model", dtype="float32").encode(texts), answer["together"])


@torch.no_grad()
def test_the_teacher_gives_the_logits_of_the_original_model_in_training(
    trained: Trained, untrained: tuple[Compressor, PreTrainedTokenizerBase]
) -> None:
    compressor, _ = untrained
    for ids in (IDS[:, :SHORT], IDS):
        states = compressor.teacher_states(ids, torch.ones_like(ids, dtype=torch.bool))
        expected = trained.original()(ids).logits[0, :, : compressor.vocabulary]
        assert_same(compressor.logits(states), expected)


@torch.no_grad()
def test_the_first_loss_is_that_of_a_slow_reference(
    trained: Trained, untrained: tuple[Compressor, PreTrainedTokenizerBase]
) -> None:
    compressor, tokenizer = untrained
    original = trained.original()
    passages, splits = [IDS[0].tolist(), IDS[0, 5:30].tolist()], [25, 9]
    batch = Batch.of(
        passages,
        splits,
        memory_ids=compressor.memory_ids,
        bos_id=compressor.bos_id,
        pad_id=tokenizer.pad_token_id,
    )
    expected = [
        slow_loss(original, compressor, torch.tensor([passage]), split)
        for passage, split in zip(passages, splits, strict=True)
    ]
    loss = Distillation().loss(compressor, batch)
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-3, atol=1e-5)


def slow_loss(model: PreTrainedModel, compressor: Compressor, ids: Tensor, split: int) -> Tensor:
    """Return the loss of one passage with stock transformers: no batch, no padding, no adapter."""
    bos = ids.new_tensor([[] if compressor.bos_id is None else [compressor.bos_id]])
    table = model.get_input_embeddings()
    scale = table(ids).norm() / table.weight[ids].norm()  # Gemma scales its embeddings
    first, text, continuation = (table(part) for part in (bos, ids[:, :split], ids[:, split:]))
    memory = token_table(compressor.body).weight[-K:][None] * scale
    decoder = model.get_decoder()
    body = model.model if decoder is model else decoder
    mode = {} if compressor.causal else {"is_causal": False}
    states = body(inputs_embeds=torch.cat([first, text, memory], 1), **mode).last_hidden_state
    read = torch.cat([first, states[:, -K:], continuation], 1)
    student = model(inputs_embeds=read).logits[0, bos.shape[1] + K - 1 :]
    teacher = model(torch.cat([bos, ids], 1)).logits[0, bos.shape[1] + split - 1 :]
    log_p, log_q = (
        logits[:, : compressor.vocabulary].log_softmax(-1) for logits in (teacher, student)
    )
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


@torch.no_grad()
def test_supervised_training_has_no_dropout_but_loras(trained: Trained, texts: list[str]) -> None:
    model = load_for(trained, attention_dropout=0.0)
    model.train()
    first, second = (model(model.preprocess(texts))["sentence_embedding"] for _ in range(2))
    assert_same(first, second, 1e-6)


def test_the_two_views_of_unsupervised_training_differ(
    trained: Trained, texts: list[str], request: pytest.FixtureRequest
) -> None:
    family, _ = request.node.callspec.params["trained"]
    model = load_for(trained, attention_dropout=0.2)
    add_adapter(encoder.encoder_body(model), Lora(r=2, dropout=0.0), K)
    if family.attention_dropout:
        check_two_views(model, texts[1])
    else:
        with pytest.raises(UserError, match="two readings of a text in training are the same"):
            check_two_views(model, texts[1])


def test_a_later_stage_may_be_causal_again(trained: Trained) -> None:
    """Gemma 3 has a setting of its own, which is in the folder and overrules `is_causal`."""
    body = encoder.encoder_body(load_for(trained, 0.0, attention="causal"))  # it is probed
    ids = IDS[:, :SHORT].clone()
    states = body(ids).last_hidden_state[:, :-1]
    ids[0, -1] += 1
    assert_same(body(ids).last_hidden_state[0, :-1], states[0], 1e-4)


def load_for(trained: Trained, attention_dropout: float, **settings: Any) -> Any:
    stage = trained.recipe.stages[1].model_copy(update=settings)
    assert isinstance(stage, Unsupervised)
    source = trained.run / "1-pretext"
    unwritten = trained.run / "unwritten"
    log = RunLog(unwritten / "run.jsonl", Console())
    context = StageContext(trained.recipe, stage, source, unwritten, unwritten, log)
    return contrastive._load(context, source, torch.float32, attention_dropout)


def test_every_linear_layer_that_is_named_is_adapted(trained: Trained) -> None:
    folder = trained.run / "1-pretext" / encoder.ADAPTER
    targets = LoraConfig.from_pretrained(folder).target_modules
    assert isinstance(targets, set)
    tensors = load_file(folder / "adapter_model.safetensors")
    adapted = {name.removesuffix(".lora_A.weight") for name in tensors if "lora_A" in name}
    for target in targets:
        assert any(name.endswith(f".{target}") for name in adapted), target


@pytest.mark.parametrize("case", cases(refused=True))
def test_what_cannot_work_is_refused_in_one_line(
    case: tuple[Family, str], backbone: Callable[[Family], Path], data: Path, tmp_path: Path
) -> None:
    family, attention = case
    with (tmp_path / "console.txt").open("w") as console, pytest.raises(UserError) as error:
        train(
            make_recipe(backbone(family), data, attention), tmp_path / "run", Console(file=console)
        )
    message = str(error.value)
    assert "\n" not in message
    assert re.search(".* ".join(family.refusal(attention).split()), message)
