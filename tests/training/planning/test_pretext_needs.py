"""What a plan says of stage 1, whose passages are cut by chance, against stage 1 itself."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from every_objective import OBJECTIVES
from torch import nn

from llm2comp.data.drawn.batches import cut
from llm2comp.data.length_batching import group_by_length
from llm2comp.model import compressor
from llm2comp.model.attention import use_sdpa
from llm2comp.model.causal_lm.few_layers import with_layers
from llm2comp.recipe import Pretext, Recipe, load_recipe
from llm2comp.training.planning import stages
from llm2comp.training.planning.machines import GPUS, Gpu
from llm2comp.training.planning.meter import count
from llm2comp.training.planning.plan import CONTEXT, _trained, plan_run
from llm2comp.training.planning.stages import Reads, pretext_step
from llm2comp.training.planning.step import Trained
from llm2comp.training.pretext import PretextModel, objective_of, pretext_model


def recipe_of(tiny_recipe: Path, *overrides: str) -> Recipe:
    """A recipe whose stage 1 cuts each passage at a place of its own, as is the default."""
    recipe = load_recipe(
        tiny_recipe,
        [
            "backbone.dtype=float32",
            "pretext.split={low: 10, margin: 10}",
            "pretext.objective=distillation",
            *overrides,
        ],
    )
    return recipe.model_copy(update={"stages": recipe.stages[:1]})


def deep(recipe: Recipe, gpu: Gpu | None) -> Trained:
    """What a run trains, with so many layers that the logits are little beside them."""
    trained = _trained(recipe, gpu)
    config = with_layers(trained.config, 2)
    config.num_hidden_layers = 8  # it has no list with one item per layer
    return replace(trained, config=config)


def stage_of(recipe: Recipe) -> Pretext:
    stage = recipe.stages[0]
    assert isinstance(stage, Pretext)
    return stage


def real(recipe: Recipe, trained: Trained) -> tuple[PretextModel, Any]:
    """What stage 1 trains, and what makes its batches."""
    model, tokenizer = trained.of_layers(trained.config.num_hidden_layers, head=True)
    use_sdpa(model)
    pretext, collator = pretext_model(recipe, stage_of(recipe), model, tokenizer)
    return pretext.train(), collator


def rows_of(recipe: Recipe, batches: int, seed: int = 0) -> Dataset:
    """Batches of passages of 40 to 200 tokens, as a run with this seed may have them."""
    stage, generator = stage_of(recipe), random.Random(seed)
    lengths = [generator.randint(40, 200) for _ in range(batches * stage.batch_size)]
    whole = objective_of(stage).whole_passage
    rows = [
        cut([list(range(5, 5 + lengths[i])) for i in batch], stage, step, generator, whole=whole)
        for step, batch in enumerate(group_by_length(lengths, stage.batch_size))
    ]
    return Dataset.from_list(rows)


@pytest.mark.parametrize("objective", ["distillation", "prefix_reconstruction"])
def test_the_operations_do_not_depend_on_the_seed(tiny_recipe: Path, objective: str) -> None:
    recipe = recipe_of(tiny_recipe, f"pretext.objective={objective}")
    stage, trained = stage_of(recipe), deep(recipe, GPUS["L4"])
    steps = [pretext_step(stage, trained, rows_of(recipe, 256, seed)) for seed in range(4)]
    flops = np.array([step.flops for step in steps])
    assert flops == pytest.approx(flops.mean(), rel=0.05)


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_the_operations_are_those_of_the_batches_one_by_one(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: str
) -> None:
    monkeypatch.setattr(compressor, "TOKENS_AT_ONCE", 10**9)  # one bucket, as on a GPU
    recipe = recipe_of(tiny_recipe, f"pretext.gradient_checkpointing={checkpointing}")
    rows = rows_of(recipe, 8)
    pretext, collator = real(recipe, deep(recipe, None))
    needs = []
    for row in rows:
        batch = collator([row])["batch"]
        needs.append(count(lambda batch=batch: pretext(batch)["loss"].backward(), pretext))
    step = pretext_step(stage_of(recipe), deep(recipe, GPUS["L4"]), rows)
    assert step.flops == pytest.approx(np.mean([need.flops for need in needs]), rel=0.05)
    assert step.peak == pytest.approx(max(need.bytes for need in needs), rel=0.25)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("at_once", [300, 10**9], ids=["buckets", "one bucket"])
def test_the_tokens_are_those_that_the_objective_reads(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, objective: str, at_once: int
) -> None:
    for module in (compressor, stages):
        monkeypatch.setattr(module, "TOKENS_AT_ONCE", at_once)
    name = f"pretext.objective={objective}"
    recipe = recipe_of(tiny_recipe, name, *OBJECTIVES[objective])
    trained, stage = _trained(recipe, None), stage_of(recipe)
    pretext, collator = real(recipe, trained)
    for row in rows_of(recipe, 8):
        with tokens_read(pretext) as read:
            pretext(collator([row])["batch"])
        batch = list(zip(map(len, row["input_ids"]), row["split"], strict=True))
        expected = Reads.of(stage, trained, batch)
        assert read["encoder"] == pytest.approx(expected.encoder, rel=0.1)
        # The last token is read only where the state at it is wanted.
        assert read["student"] == pytest.approx(expected.student, rel=0.05)
        assert read["teacher"] == expected.teacher


@contextmanager
def tokens_read(pretext: PretextModel) -> Iterator[Counter[str]]:
    """Count the tokens that the body reads, by who reads them."""
    read: Counter[str] = Counter()

    def look(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        of = options.get("inputs_embeds", inputs[0] if inputs else options.get("input_ids"))
        who = "encoder"
        if pretext.compressor._frozen:
            who = "student" if torch.is_grad_enabled() else "teacher"
        read[who] += of.shape[0] * of.shape[1]

    handle = pretext.compressor.body.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield read
    finally:
        handle.remove()


def test_a_smaller_batch_is_advice_for_stage_1(tiny_recipe: Path) -> None:
    """A row is a whole batch, so the rows of smaller batches are others."""
    overrides = ["pretext.gradient_checkpointing=true", "pretext.batch_size={}"]
    large, small = (
        plan_run(recipe_of(tiny_recipe, *(o.format(n) for o in overrides)), GPUS["L4"])
        for n in (16, 4)
    )
    room = (large.stages[0].memory + small.stages[0].memory) / 2
    recipe = recipe_of(tiny_recipe, *(o.format(16) for o in overrides))
    changes = plan_run(recipe, Gpu("small", CONTEXT + room, 1e12, 1e12)).stages[0].changes
    assert changes in (["pretext.batch_size=8"], ["pretext.batch_size=4"])
