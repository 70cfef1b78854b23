"""Whatever a training step makes is on the device of the model, as a GPU wants it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    CoSENTLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor, nn

from llm2comp.model import encoder
from llm2comp.model.backbone import load_backbone
from llm2comp.model.causal_lm.parts import body_of
from llm2comp.model.lora import add_adapter, trainable_parameters
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.recipe import Lora, Memory, Pretext, load_recipe
from llm2comp.training.losses.length_sorted import LengthSorted
from llm2comp.training.losses.matryoshka import matryoshka
from llm2comp.training.monitoring import held_out
from llm2comp.training.objectives.registry import OBJECTIVES
from llm2comp.training.pretext import pretext_model
from training.pretend_device import NAME, Pretended, move, pretended

PASSAGES = [list(range(20, 41)), list(range(60, 72)), [7, 9, 100, 31, 8, 12]]
SPLITS = [12, 5, 3]


def gradients(model: nn.Module) -> list[Tensor]:
    found = [p.grad for p in trainable_parameters(model).values() if p.grad is not None]
    return [grad.inner if isinstance(grad, Pretended) else grad for grad in found]


def require_same(model: nn.Module, twin: nn.Module) -> None:
    one, other = gradients(model), gradients(twin)
    assert len(one) == len(other) > 0
    assert any(grad.any() for grad in one)
    for first, second in zip(one, other, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def pretext_of(recipe_path: Path, objective: str, **changes: Any) -> tuple[Any, Any]:
    recipe = load_recipe(recipe_path)
    stage = recipe.stages[0]
    assert isinstance(stage, Pretext)
    stage = stage.model_copy(
        update={"objective": objective, "attention": "bidirectional", "lora": Lora(dropout=0)}
        | changes
    )
    model, tokenizer = load_backbone(recipe.backbone.name)
    model.set_attn_implementation("eager")
    extended = add_memory_tokens(model, tokenizer, recipe.memory, 0, OBJECTIVES[objective].format())
    return pretext_model(recipe, stage, model, extended)


CASES = [*((objective, False) for objective in sorted(OBJECTIVES)), ("distillation", True)]


@pytest.mark.parametrize(("objective", "checkpointing"), CASES)
def test_a_step_of_stage_1(tiny_recipe: Path, objective: str, checkpointing: bool) -> None:
    model, collator = pretext_of(tiny_recipe, objective, gradient_checkpointing=checkpointing)
    twin, _ = pretext_of(tiny_recipe, objective, gradient_checkpointing=checkpointing)
    batch = collator.batch(PASSAGES, SPLITS)
    torch.manual_seed(0)
    expected = model.train()(batch)["loss"]
    expected.backward()
    with pretended():
        move(twin)
        torch.manual_seed(0)
        loss = twin.train()(batch)["loss"]
        assert loss.device.type == NAME
        loss.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    require_same(model, twin)


def test_held_out_measurements_of_stage_1(tiny_recipe: Path) -> None:
    model, collator = pretext_of(tiny_recipe, "distillation")
    twin, _ = pretext_of(tiny_recipe, "distillation")
    batch = collator.batch(PASSAGES, SPLITS)
    expected = held_out.measure(model.compressor, model.objective, [batch])
    with pretended():
        move(twin)
        on_device = batch.to(torch.device(NAME))
        found = held_out.measure(twin.compressor, twin.objective, [on_device])
    assert (found.matched, found.mismatched) == pytest.approx(
        (expected.matched, expected.mismatched), rel=1e-4
    )


LOSSES = {
    "InfoNCE": lambda model: MultipleNegativesRankingLoss(model),
    "GradCache": lambda model: CachedMultipleNegativesRankingLoss(model, mini_batch_size=2),
    "Matryoshka": lambda model: matryoshka(model, MultipleNegativesRankingLoss(model), [32, 8]),
    "CoSENT": lambda model: CoSENTLoss(model),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_of_stages_2_and_3(tiny_backbone: Path, sentences: list[str], name: str) -> None:
    backbone, tokenizer = load_backbone(str(tiny_backbone))
    backbone.set_attn_implementation("eager")
    extended = add_memory_tokens(backbone, tokenizer, Memory(tokens=4), 0)
    model = encoder.assemble(body_of(backbone), extended, 4, causal=False)
    model.requires_grad_(False)
    add_adapter(encoder.encoder_body(model), Lora(r=4, dropout=0), 4)
    twin = copy.deepcopy(model)
    rows = [{"anchor": a, "positive": b} for a, b in zip(sentences[:4], sentences[4:], strict=True)]
    batch = LengthSorted(preprocess_fn=model.preprocess)(rows)
    labels = torch.tensor([0.1, 0.9, 0.4, 0.5])

    def features(place: Any) -> list[dict[str, Tensor]]:
        return [
            {part: place(batch[f"{column}_{part}"]) for part in ("input_ids", "attention_mask")}
            for column in ("anchor", "positive")
        ]

    expected = LOSSES[name](model.train())(features(lambda tensor: tensor), labels)
    expected.backward()
    with pretended() as place:
        move(twin)
        loss = LOSSES[name](twin.train())(features(place), place(labels))
        assert loss.device.type == NAME
        loss.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    require_same(model, twin)


def test_what_is_made_on_the_processor_is_found() -> None:
    with pretended() as place, pytest.raises(RuntimeError, match="two devices"):
        place(torch.ones(3)) + torch.arange(3)
