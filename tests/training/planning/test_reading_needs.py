"""A plan counts the frozen language model that reads memory in stage 3, and its passes."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm2comp.inference.reading.answering import PROMPT, TOKENS, answers
from llm2comp.inference.reading.reader import Reader
from llm2comp.model import encoder
from llm2comp.model.attention import use_sdpa
from llm2comp.model.causal_lm.few_layers import random_model, with_layers
from llm2comp.model.causal_lm.parts import Head
from llm2comp.model.lora import add_adapter
from llm2comp.recipe import Recipe, Supervised, load_recipe
from llm2comp.training.losses import reading as loss_of_reading
from llm2comp.training.losses.reading import ReadMemory
from llm2comp.training.objectives.registry import OBJECTIVES
from llm2comp.training.planning import on_meta, plan, reading, stages
from llm2comp.training.planning import step as plan_step
from llm2comp.training.planning.machines import GPUS, Gpu
from llm2comp.training.planning.meter import count
from llm2comp.training.planning.plan import _trained, plan_run
from llm2comp.training.planning.step import Step, Trained

READING = ("supervised.reading.weight=2.0", "supervised.reading.passages=4")


def planned(tiny_recipe: Path, *overrides: str, gpu: Gpu | None = None) -> plan.Plan:
    recipe = load_recipe(tiny_recipe, ["backbone.dtype=float32", *overrides])
    # Stage 1 alone, which decides what reads, and stage 3.
    return plan_run(recipe.model_copy(update={"stages": recipe.stages[::2]}), gpu)


@pytest.mark.parametrize("gpu", [None, GPUS["L4"]])
def test_the_second_model_and_its_passes_are_in_the_plan(
    tiny_recipe: Path, gpu: Gpu | None
) -> None:
    without, read = (planned(tiny_recipe, *some, gpu=gpu) for some in ((), READING))
    backbone = _trained(load_recipe(tiny_recipe), None).on_meta()
    size = 4 * sum(p.numel() for p in backbone.parameters())
    before, after = without.stages[-1], read.stages[-1]
    assert after.weights - before.weights == size
    assert after.memory - before.memory > size
    assert after.step.flops > 1.5 * before.step.flops
    # The encoder reads 4 passages of 30 words once more.
    assert after.step.tokens - before.step.tokens >= 4 * 30
    assert without.stages[0].weights == read.stages[0].weights
    if gpu is None:
        assert read.host - without.host > size
    else:
        assert after.seconds > before.seconds


class Real:
    """The loss itself, on models of two layers with random weights."""

    def __init__(self, trained: Trained, stage: Supervised, objective: str) -> None:
        assert trained.lineage.method is not None
        body, tokenizer = trained.of_layers(2, head=False)
        _, memory, prompt_format = trained.lineage.method
        built = encoder.assemble(
            body,
            tokenizer,
            memory.tokens,
            causal=True,
            prompts={},
            max_length=1000,
            prompt_format=prompt_format,
        )
        body.requires_grad_(False)
        assert stage.lora is not None
        add_adapter(body, stage.lora, trained.memory_embeddings)
        if stage.gradient_checkpointing:
            body.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
        reads = random_model(with_layers(trained.config, 2), head=True, device="cpu")
        use_sdpa(reads)
        reader = Reader("tiny", trained.lineage, built, reads, trained.tokenizer, None, Head(reads))
        built.train()
        self.reader = reader
        self.models = nn.ModuleList([built, reads])
        self.loss = ReadMemory(reader, OBJECTIVES[objective](), 8)

    def features(self, texts: list[str]) -> dict[str, Tensor]:
        return dict(self.reader.encoder.preprocess(texts))


def with_whole_answers(reader: Reader, prefixes: Any, tokens: int) -> list[list[int]]:
    """Return answers of the greatest length, though a random model may end one earlier."""
    said = answers(reader, prefixes, tokens)
    return [[*ids, *[5] * (tokens - len(ids))] for ids in said]


@pytest.mark.parametrize("objective", ["distillation", "continuation", "reconstruction"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_passes_are_those_of_the_loss(
    tiny_recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
    *,
    checkpointing: bool,
) -> None:
    monkeypatch.setattr(loss_of_reading, "answers", with_whole_answers)
    for module in (reading, plan_step):  # a GPU's attention, which `on_meta` counts
        monkeypatch.setattr(module, "configure_attention", use_sdpa)
    recipe = load_recipe(
        tiny_recipe,
        [
            "backbone.dtype=float32",
            f"pretext.objective={objective}",
            f"supervised.gradient_checkpointing={str(checkpointing).lower()}",
            *READING,
        ],
    )
    stage, trained = supervised(recipe), _trained(recipe, None)
    real = Real(trained, stage, objective)
    passage, question = "the sea and the coin " * 20, "where is the sea "
    (ids,), (prompt,) = (
        real.reader.tokens([text.strip()])
        for text in (passage, PROMPT.format(question=question.strip()))
    )
    rows = 4
    texts = [real.features([text.strip()] * rows) for text in (question, passage)]

    def step() -> None:
        real.loss(*texts).backward()

    whole = count(step, real.models)
    build = partial(stages._encoder, stage)
    for device in ("meta", "cpu"):
        there = replace(trained, device=torch.device(device))
        need = reading.reading_need(
            stage, there, rows, len(ids), len(prompt) + TOKENS, partial(build, there)
        )
        assert need.flops == pytest.approx(whole.flops, rel=0.05), device
        assert need.bytes == pytest.approx(whole.bytes, rel=0.1), device


def test_the_texts_and_the_reading_are_in_memory_at_once(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_of_reading, "answers", with_whole_answers)
    recipe = load_recipe(tiny_recipe, ["backbone.dtype=float32", *READING])
    stage, trained = supervised(recipe), _trained(recipe, GPUS["L4"])
    monkeypatch.setattr(plan_step, "configure_attention", use_sdpa)
    real = Real(replace(trained, device=torch.device("cpu")), stage, "distillation")
    passages, questions = (real.features([text.strip()] * 4) for text in ("sea " * 60, "the sea"))
    body = real.reader.encoder[0].model

    def step() -> None:
        read = real.loss(questions, passages)
        (read + on_meta.read(body, 16, 65).float().sum()).backward()

    whole = count(step, real.models)
    length = int(passages["attention_mask"][0].sum()) - trained.specials
    (prompt,) = real.reader.tokens([PROMPT.format(question="the sea")])
    read = reading.reading_need(
        stage, trained, 4, length, len(prompt) + TOKENS, partial(stages._encoder, stage, trained)
    )
    texts = on_meta.contrastive_need(stage, trained, 16, 65, backward=True)
    assert read.bytes + texts.bytes == pytest.approx(whole.bytes, rel=0.15)
    assert read.flops + texts.flops == pytest.approx(whole.flops, rel=0.05)


def supervised(recipe: Recipe) -> Supervised:
    stage = recipe.stages[-1]
    assert isinstance(stage, Supervised)
    return stage


def test_short_passages_need_the_weights_alone(tiny_recipe: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.jsonl"
    rows = [{"anchor": f"sea {row}", "positive": f"coin {row}"} for row in range(40)]
    short.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f'supervised.data=[{{"source": "{short}"}}]'
    without, read = (planned(tiny_recipe, data, *some, gpu=GPUS["L4"]) for some in ((), READING))
    assert read.stages[-1].step == without.stages[-1].step
    assert read.stages[-1].weights > without.stages[-1].weights


def test_fewer_passages_are_advised(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(stage: Supervised, *_: object) -> Step:
        assert stage.reading is not None
        return Step(stage.reading.passages, 1, 1, 1)

    monkeypatch.setattr(plan, "contrastive_step", step)
    overrides = [*READING, "supervised.gradient_checkpointing=true", "supervised.mini_batch_size=1"]
    stage = planned(tiny_recipe, *overrides, gpu=GPUS["L4"]).stages[-1]
    monkeypatch.setattr(plan, "_room", lambda _: stage.weights + 1)
    changed = planned(tiny_recipe, *overrides, gpu=GPUS["L4"]).stages[-1]
    assert changed.changes == ["supervised.reading.passages=1"]
