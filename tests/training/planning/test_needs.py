"""What a plan says a step needs, against the step itself and against what is known of memory."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from base_encoders import fine_tuning
from datasets import Dataset, DatasetDict
from every_objective import OBJECTIVES
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import LlamaConfig

from llm2comp.errors import UserError
from llm2comp.model.attention import use_sdpa
from llm2comp.model.causal_lm.few_layers import random_model, with_layers
from llm2comp.model.lora import add_adapter, trainable_parameters
from llm2comp.recipe import Contrastive, Pretext, StageBase, load_recipe
from llm2comp.recipe_parts import Lora
from llm2comp.training import pipeline
from llm2comp.training.planning import describe, on_meta, plan, stages
from llm2comp.training.planning.machines import GPUS, Gpu, gpu_named
from llm2comp.training.planning.meter import Need, count
from llm2comp.training.planning.plan import Plan, StagePlan, _trained, plan_run
from llm2comp.training.planning.rows import some_rows
from llm2comp.training.planning.step import Step, whole_need
from llm2comp.training.pretext import pretext_model

SMALL = Gpu("small", 1e9 + 3e6, 1e12, 1e12)
"""A card with 3 MB beside what CUDA takes."""


def test_the_meter_counts_live_tensors_and_no_weights() -> None:
    model = nn.Linear(100, 50, bias=False)

    def run() -> None:
        first = torch.zeros(1000)  # 4,000 bytes
        del first
        second = torch.zeros(10, 100)  # 4,000 bytes, when the first is gone
        model(second)  # 2,000 bytes; 2 x 10 x 100 x 50 operations

    need = count(run, model)
    assert need == Need(6000, 100_000, 0.0)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_passes_on_meta_are_those_of_the_objective(
    tiny_recipe: Path, objective: str, checkpointing: bool
) -> None:
    recipe = load_recipe(
        tiny_recipe,
        [
            "backbone.dtype=float32",
            f"pretext.objective={objective}",
            f"pretext.gradient_checkpointing={str(checkpointing).lower()}",
            *OBJECTIVES[objective],
        ],
    )
    stage = recipe.stages[0]
    assert isinstance(stage, Pretext)
    trained = _trained(recipe, None)
    rows, length, split = 4, 200, 120
    whole = objective in ("reconstruction", "mntp")
    model, tokenizer = trained.of_layers(2, head=True)
    use_sdpa(model)
    pretext, collator = pretext_model(recipe, stage, model, tokenizer)
    pretext.train()
    ids = list(range(5, 205))
    batch = collator.batch([ids] * rows, [length if whole else split] * rows)

    def step() -> None:
        pretext(batch)["loss"].backward()

    real = count(step, pretext)
    counted = on_meta.pretext_need(stage, trained, rows, length, length if whole else split)
    assert counted.flops == pytest.approx(real.flops, rel=0.05)
    assert counted.bytes == pytest.approx(real.bytes, rel=0.1)


def test_few_layers_and_rows_tell_what_all_of_them_need(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe, ["backbone.dtype=float32"])
    stage, trained = recipe.stages[1], _trained(recipe, None)
    assert isinstance(stage, Contrastive)
    trained = replace(trained, config=with_layers(trained.config, 2))
    trained.config.num_hidden_layers = 9  # it has no list with one item per layer

    def build(layers: int, rows: int) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
        return stages._encoder_step(stage, trained, layers, rows, 40)

    need = whole_need(trained, build, rows=12, row_tokens=40)
    model, loss = build(9, 12)

    def step() -> None:
        loss().backward()
        model.zero_grad(set_to_none=True)

    whole = count(step, model)
    assert need.bytes == pytest.approx(whole.bytes, rel=0.02)
    assert need.flops == pytest.approx(whole.flops, rel=0.02)
    assert need.seconds > 0


def test_the_count_of_a_stage_is_that_of_the_formula_in_the_guide() -> None:
    """docs/guides/memory.md: about 36 h + 10 i bytes per token and block."""
    hidden, inner, layers, rows, length = 512, 1408, 4, 8, 128
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=8,
    )
    model = random_model(config, head=False, device="meta", dtype=torch.bfloat16)
    model.set_attn_implementation(on_meta.FUSED)
    model.config.use_cache = False
    add_adapter(model, Lora(), 4)
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.to(torch.bfloat16)
    model.train()
    states = []

    def step() -> None:
        states.append(on_meta.read(model, rows, length))

    kept = count(step, model).bytes
    assert kept == pytest.approx(rows * length * layers * (36 * hidden + 10 * inner), rel=0.1)


def test_a_plan_of_a_whole_run(tiny_recipe: Path, tmp_path: Path) -> None:
    stages = ["pretext", "unsupervised", "supervised"]
    recipe = load_recipe(
        tiny_recipe, ["backbone.dtype=float32", *(f"{stage}.steps=4" for stage in stages)]
    )
    planned = plan_run(recipe)
    assert [(stage.stage, stage.steps) for stage in planned.stages] == [(one, 4) for one in stages]
    assert all(stage.changes is None for stage in planned.stages)
    # 8 texts of 30 words, twice, with BOS and 4 memory tokens; a word is at least one token.
    assert planned.stages[1].step.tokens >= 16 * 35
    out = tmp_path / "run"
    pipeline.train(recipe, out)
    written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    large = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
    assert large <= planned.disk + 100_000
    assert planned.disk < 2 * written


def test_a_teacher_is_that_of_its_source_whatever_the_order_of_the_rows(tiny_recipe: Path) -> None:
    """A batch with a teacher is in memory at once, and others are cut into mini-batches."""
    data = "supervised.data=[{source: short, teacher: t}, {source: long}]"
    recipe = load_recipe(tiny_recipe, [data, "supervised.mini_batch_size=2"])
    stage, trained = recipe.stages[-1], _trained(recipe, GPUS["L4"])
    assert isinstance(stage, Contrastive)
    texts = {"short": ["a river"] * 8, "long": ["the river rises in the mountains " * 3] * 8}
    parts = {name: Dataset.from_dict({"anchor": t, "positive": t}) for name, t in texts.items()}
    one, other = (
        stages.contrastive_step(stage, trained, DatasetDict({name: parts[name] for name in order}))
        for order in (("short", "long"), ("long", "short"))
    )
    assert other.peak == one.peak
    assert other.flops == pytest.approx(one.flops)


def test_what_does_not_fit_is_told_with_settings_that_fit(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    misfit = next(stage for stage in plan_run(recipe, SMALL).stages if stage.changes)
    assert misfit.memory > 3e6
    assert misfit.changes
    smaller_recipe = load_recipe(tiny_recipe, misfit.changes)
    again = {stage.stage: stage for stage in plan_run(smaller_recipe, SMALL).stages}
    assert again[misfit.stage].changes is None
    assert again[misfit.stage].memory <= 3e6


def test_the_advice_for_this_machine_counts_what_its_plan_counts(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(stage: StageBase, *_: object) -> Step:
        return Step(stage.batch_size * (1.0 if stage.gradient_checkpointing else 2.0), 1, 1, 1)

    monkeypatch.setattr(plan, "HEAP", 10.0)
    monkeypatch.setattr(plan, "pretext_step", step)
    monkeypatch.setattr(plan, "contrastive_step", step)
    recipe = load_recipe(tiny_recipe, ["pretext.batch_size=4"])
    stage = plan_run(recipe).stages[0]
    assert stage.step.peak == 80
    monkeypatch.setattr(plan, "_room", lambda _: stage.weights + 25)
    changes = plan_run(recipe).stages[0].changes
    assert changes == ["pretext.gradient_checkpointing=true", "pretext.batch_size=2"]


def test_a_stage_without_steps_needs_its_weights_only(tiny_recipe: Path) -> None:
    planned = plan_run(load_recipe(tiny_recipe, ["pretext.steps=0"]), GPUS["L4"]).stages[0]
    assert (planned.steps, planned.seconds, planned.step.peak) == (0, 0.0, 0.0)
    assert planned.weights > 0


def test_a_recipe_that_starts_from_nothing_is_refused(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    with pytest.raises(UserError, match="unsupervised needs an encoder; set base"):
        plan_run(recipe.model_copy(update={"stages": recipe.stages[1:]}))


def test_nothing_helps_where_the_weights_alone_are_too_large(tiny_recipe: Path) -> None:
    planned = plan_run(load_recipe(tiny_recipe), Gpu("tiny", 1e9 + 1e4, 1e12, 1e12))
    assert [stage.changes for stage in planned.stages] == [[], [], []]
    assert "choose a smaller backbone" in describe.notes(planned)[-1]


def test_a_plan_leaves_the_random_state_as_it_was(tiny_recipe: Path) -> None:
    state = torch.get_rng_state()
    plan_run(load_recipe(tiny_recipe), GPUS["H100-80GB"])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_gpu_is_found_in_any_case_and_another_one_is_an_error() -> None:
    assert gpu_named("h100-80gb") is GPUS["H100-80GB"]
    with pytest.raises(UserError, match="GPU 'H300' is not known; give one of"):
        gpu_named("H300")


def test_a_gpu_without_bfloat16_is_planned_in_float32(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    assert recipe.backbone.dtype == "auto"
    assert (_trained(recipe, GPUS["T4"]).dtype, _trained(recipe, GPUS["L4"]).dtype) == (
        torch.float32,
        torch.bfloat16,
    )
    older, newer = (plan_run(recipe, GPUS[name]) for name in ("T4", "L4"))
    assert older.stages[0].weights > newer.stages[0].weights
    assert older.stages[0].seconds / newer.stages[0].seconds == pytest.approx(121 / 8.1)
    assert "35% of the 8.1 TFLOP/s of a T4 in float32" in describe.notes(older)[1]
    assert "35% of the 121 TFLOP/s of a L4 in bfloat16" in describe.notes(newer)[1]
    asked = plan_run(load_recipe(tiny_recipe, ["backbone.dtype=float32"]), GPUS["L4"])
    assert asked.stages[0].seconds / newer.stages[0].seconds == pytest.approx(121 / 30.3)
    assert "35% of the 30.3 TFLOP/s of a L4 in float32" in describe.notes(asked)[1]


@pytest.mark.parametrize("weight", [2000, 600])
def test_a_source_of_small_weight_is_planned_as_it_is_trained(
    tmp_path: Path, tiny_recipe: Path, weight: int
) -> None:
    """A run of 200 steps draws pairs of `rare`, and the first 1,024 rows have one or none."""
    for name, number in (("rare", 40), ("common", 5000)):
        pairs = [{"anchor": f"{name} {i}", "positive": f"says {name} {i}"} for i in range(number)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")
    data = [
        {"source": str(tmp_path / "rare.jsonl"), "weight": 1},
        {"source": str(tmp_path / "common.jsonl"), "weight": weight},
    ]
    overrides = [f"supervised.data={json.dumps(data)}", "supervised.steps=200"]
    recipe = load_recipe(tiny_recipe, [*overrides, "supervised.batch_size=32"])
    stage = recipe.stages[-1]
    rows = some_rows(recipe, stage, _trained(recipe, GPUS["L4"]).tokenizer)
    assert min(len(part) for part in rows.values()) >= 2
    with pytest.raises(UserError, match="rare.jsonl: no pairs to draw"):  # as `train` says it
        some_rows(recipe, stage.model_copy(update={"steps": 1}), _trained(recipe, None).tokenizer)


def test_few_rows_of_a_source_stand_for_its_whole_batches(tiny_recipe: Path) -> None:
    data = "supervised.data=[{source: a}, {source: b}, {source: c}, {source: d}]"
    recipe = load_recipe(tiny_recipe, [data, "supervised.batch_size=64"])
    stage, trained = recipe.stages[-1], _trained(recipe, GPUS["L4"])
    assert isinstance(stage, Contrastive)

    def tokens(names: str, number: int) -> float:
        part = Dataset.from_dict({"anchor": ["a river"] * number, "positive": ["a sea"] * number})
        return stages.contrastive_step(
            stage, trained, DatasetDict(dict.fromkeys(names, part))
        ).tokens

    assert tokens("abcd", 16) == pytest.approx(tokens("a", 64))


def test_the_start_of_a_name_is_enough_if_it_is_the_only_one() -> None:
    assert gpu_named("h200") is GPUS["H200-141GB"]
    assert gpu_named("L4") is GPUS["L4"]  # and not L40S, which begins like it
    with pytest.raises(UserError, match="GPU 'A100' may be A100-40GB or A100-80GB; give its whole"):
        gpu_named("A100")
    with pytest.raises(UserError, match="is not known"):
        gpu_named("")


def test_numbers_of_a_small_run_are_not_rounded_to_nothing() -> None:
    stage = StagePlan("pretext", 2, 8_400, Step(1e4, 3e9, 4e6, 1.0), 2e5, 2.0)
    small = Plan([stage], 61_300, 98.6e6, 31_400, None, 1e9, torch.float32, in_4bit=False)
    _, row, _ = describe.table(small)
    assert row[4:6] == ["8.4 k", f"{stage.memory / 1e6:.2g} MB"]
    first = describe.notes(small)[0]
    assert first == "61.3 k parameters; memory of the host 99 MB; disk 0.031 MB"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            ["pretext.gradient_checkpointing=true", "pretext.batch_size=2"],
            "it fits with pretext.gradient_checkpointing=true (the result stays the same), "
            "pretext.batch_size=2 (the result changes)",
        ),
        (
            ["supervised.gradient_checkpointing=true", "supervised.mini_batch_size=8"],
            "it fits with supervised.gradient_checkpointing=true supervised.mini_batch_size=8 (the "
            "result stays the same)",
        ),
        (["pretext.batch_size=1"], "it fits with pretext.batch_size=1 (the result changes)"),
    ],
)
def test_what_changes_the_result_is_apart_from_what_does_not(changes: list[str], said: str) -> None:
    stage = StagePlan("pretext", 2, 8, Step(1e4, 3e9, 4e6, 1.0), 2e12, 2.0, changes)
    plan = Plan([stage], 60, 1e9, 1e9, GPUS["L4"], GPUS["L4"].memory, torch.bfloat16, in_4bit=False)
    assert describe.notes(plan)[-1].endswith(f"; {said}")


@pytest.mark.parametrize("trains_all", [False, True])
def test_a_run_from_an_encoder_of_others_is_planned(
    bert: Path, pairs: Path, tmp_path: Path, *, trains_all: bool
) -> None:
    recipe = fine_tuning(bert, pairs, *(["supervised.lora=null"] if trains_all else []))
    planned = plan_run(recipe)
    (stage,) = planned.stages
    loaded = SentenceTransformer(str(bert), device="cpu")
    assert planned.parameters == sum(p.numel() for p in loaded[0].parameters())
    assert (stage.trained == planned.parameters) is trains_all
    texts = [text for line in pairs.read_text().splitlines() for text in json.loads(line).values()]
    longest = min(40, max(len(ids) for ids in loaded.tokenizer(texts)["input_ids"]))
    most = 2 * recipe.stages[0].batch_size * longest  # the encoder reads 40 tokens of a text
    assert 0.3 * most < stage.step.tokens <= most
    assert plan_run(recipe, GPUS["L4"]).stages[0].step.flops == pytest.approx(
        stage.step.flops, rel=0.2
    )
    model = pipeline.train(recipe, tmp_path / "run")
    weights = (model / "model.safetensors").stat().st_size
    assert weights <= planned.disk < weights + 60 * stage.trained


def test_folders_in_bfloat16_take_half_the_disk(tiny_recipe: Path) -> None:
    exact, rounded = (
        plan_run(load_recipe(tiny_recipe, ["pretext.steps=0", f"save_dtype={dtype}"]), GPUS["L4"])
        for dtype in ("float32", "bfloat16")
    )
    assert exact.disk - rounded.disk == 3 * 2 * exact.parameters
    assert exact.host > rounded.host
