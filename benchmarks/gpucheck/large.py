"""Trains a random backbone of 7B weights for a few steps, and compares it with `llm2comp plan`.

The weights are made on the device and are never on a disk. All else is what `llm2comp train` runs,
but for the folder of a stage, which is not written.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from gpucheck.device import allocated, device, gpu_here, peak_of, synchronize
from gpucheck.rows import Found, NotRunError, Recorder
from gpucheck.workshop import SEED, Workshop
from llm2comp.model import encoder
from llm2comp.model.attention import configure_attention
from llm2comp.model.causal_lm.dropout import remove_dropout
from llm2comp.model.causal_lm.few_layers import random_model
from llm2comp.model.lineage import Lineage
from llm2comp.model.loading.checkpoint import read_config, read_tokenizer
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.recipe import Pretext, Recipe, Stage, Unsupervised, load_recipe, recipe_path
from llm2comp.training import contrastive, pretext
from llm2comp.training.guarded_trainer import GuardedTrainer
from llm2comp.training.monitoring.run_log import RunLog
from llm2comp.training.planning.plan import Plan, StagePlan, plan_run
from llm2comp.training.pretext import objective_of, train_pretext
from llm2comp.training.stage_context import StageContext
from llm2comp.training.supervised import train_supervised
from llm2comp.training.unsupervised import train_unsupervised

RECIPE = "llama2-7b"
LEFT = 0.1e9
"""Bytes that may be left on the device after a stage."""


def large(workshop: Workshop, record: Recorder) -> None:
    """Train each stage of the large recipe for a few steps, and compare it with its plan."""
    recipe = large_recipe(workshop)

    @cache
    def planned() -> Plan:
        return plan_run(recipe, gpu_here())

    for stage in recipe.stages:
        _check_stage(workshop, record, recipe, stage, planned)


def _check_stage(
    workshop: Workshop, record: Recorder, recipe: Recipe, stage: Stage, planned: Any
) -> None:
    """Write the rows of a stage: its memory, its speed, its losses."""
    taken: dict[str, float] = {}
    apart = workshop.sizes.memory_apart

    def memory() -> Found:
        plan = planned()
        wanted = _of_stage(plan, stage)
        if wanted.memory > plan.room:
            raise NotRunError(
                f"the plan says {_gb(wanted.memory)}, and the card has {_gb(plan.room)} for it"
            )
        with step_seconds() as seconds:
            peak = peak_of(lambda: train_stage(workshop, recipe, stage))
        taken["seconds"] = median(seconds[1:] or seconds)
        ratio = peak.allocated / wanted.memory
        return Found(
            f"{_gb(peak.allocated)} ({_gb(peak.reserved)} reserved), plan {_gb(wanted.memory)}, "
            f"ratio {ratio:.2f}",
            passed=abs(ratio - 1) <= apart,
            limit=f"ratio {1 - apart:g} to {1 + apart:g}",
            numbers={
                "allocated": peak.allocated,
                "reserved": peak.reserved,
                "planned": wanted.memory,
                "ratio": ratio,
            },
        )

    def speed() -> Found:
        if not taken:
            raise NotRunError("the stage did not end")
        wanted = _of_stage(planned(), stage)
        seconds, plan = taken["seconds"], wanted.seconds / wanted.steps
        return Found(
            f"{stage.batch_size / seconds:.2f} samples/s, {seconds:.2f} s a step, plan "
            f"{plan:.2f}, ratio {seconds / plan:.2f}",
            numbers={
                "samples per second": stage.batch_size / seconds,
                "seconds": seconds,
                "planned seconds": plan,
                "FLOP per second": wanted.step.flops / seconds,
            },
        )

    record.check(f"{stage.stage}: peak memory", memory)
    record.check(f"{stage.stage}: memory is given back", _given_back)
    record.check(f"{stage.stage}: speed", speed)


def _given_back() -> Found:
    """Check that a stage leaves nothing on the device, for the next one needs the room."""
    left = allocated()
    if left is None:
        raise NotRunError("a processor does not count it")
    return Found(f"{_gb(left)} left", passed=left <= LEFT, limit=_gb(LEFT))


def _of_stage(plan: Plan, stage: Stage) -> StagePlan:
    return next(one for one in plan.stages if one.stage == stage.stage)


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


def large_recipe(workshop: Workshop) -> Recipe:
    """Return the shipped recipe with texts of its greatest length, and few steps of few rows."""
    sizes, folder = workshop.sizes, workshop.folder
    settings = load_recipe(recipe_path(RECIPE)).model_dump(exclude_unset=True)
    settings["backbone"] |= {"name": str(folder / "large")}
    settings["evaluation"] = {"tasks": []}
    first, second, third = settings["stages"]
    first["passages"] |= {"crop": True}  # to the greatest length
    first |= {"data": [{"source": str(folder / "long.txt")}], "eval_passages": 2}
    second |= {"data": [{"source": str(folder / "long.txt")}], "batch_size": sizes.large_rows[0]}
    third |= {
        "data": [{"source": str(folder / "long-pairs.jsonl")}],
        "batch_size": sizes.large_rows[1],
    }
    for stage in settings["stages"]:
        stage |= {"steps": sizes.large_steps, "log_steps": 1, "save_steps": 1000}
        stage["eval_steps"] = 1000
    for stage in (second, third):
        stage["eval_pairs"] = 0
    if sizes.large_tokens is not None:
        settings["max_length"] = sizes.large_tokens
        first["passages"] |= {"max_tokens": sizes.large_tokens}
        for stage in (second, third):
            stage |= {"max_length": sizes.large_tokens, "mini_batch_tokens": 4 * sizes.large_tokens}
    return Recipe.model_validate(settings)


def train_stage(workshop: Workshop, recipe: Recipe, stage: Stage) -> None:
    """Train a stage on a random backbone that is made on the device, and write no folder."""
    folder, work = workshop.folder / "large", workshop.folder / f"work-{stage.stage}"
    work.mkdir(exist_ok=True)
    log = RunLog(work / "run.jsonl", Console(quiet=True))
    first = recipe.stages[0]
    assert isinstance(first, Pretext)
    begun = Lineage.start(recipe, objective_of(first).prompt_format)
    source = None if isinstance(stage, Pretext) else folder
    context: Any = StageContext(recipe, stage, source, work / "out", work, log, begun)
    log.start_stage(stage.stage, None)
    train: Any = train_supervised
    if isinstance(stage, Pretext):
        train = train_pretext
    elif isinstance(stage, Unsupervised):
        train = train_unsupervised
    with _random_weights(recipe):
        train(context)


@contextmanager
def _random_weights(recipe: Recipe) -> Iterator[None]:
    """Let the stages make their model on the device where they would read a folder."""

    def backbone(name: str, **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        config = read_config(Path(name), name)
        remove_dropout(config)
        torch.manual_seed(SEED)
        model = random_model(config, head=True, device=str(device()), dtype=options["dtype"])
        configure_attention(model)
        return model, read_tokenizer(Path(name), name)

    def reader(name: str, **options: Any) -> SentenceTransformer:
        config = AutoConfig.from_pretrained(name, **options["config_kwargs"])
        torch.manual_seed(SEED)
        dtype = options["model_kwargs"]["dtype"]
        body = random_model(config, head=False, device=str(device()), dtype=dtype)
        tokenizer = add_memory_tokens(
            body, read_tokenizer(Path(name), name), recipe.memory, SEED, add_bos=True
        )
        return encoder.assemble(body, tokenizer, recipe.memory.tokens, causal=False)

    with ExitStack() as stack:
        for module, name, value in (
            (pretext, "load_backbone", backbone),
            (pretext, "_write", _write_nothing),
            (contrastive, "SentenceTransformer", reader),
            (contrastive, "probe_encoder", _write_nothing),  # random weights may fail it
            (contrastive, "_write", _write_nothing),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def _write_nothing(*_: object, **__: object) -> None:
    """Stand in for what the large backbone leaves out."""


@contextmanager
def step_seconds() -> Iterator[list[float]]:
    """Yield a list that gets the seconds of each step of a Trainer, without the update."""
    seconds: list[float] = []
    step = GuardedTrainer.training_step

    def timed(trainer: GuardedTrainer, *arguments: Any, **options: Any) -> torch.Tensor:
        synchronize()
        start = time.perf_counter()
        loss = step(trainer, *arguments, **options)
        synchronize()
        seconds.append(time.perf_counter() - start)
        return loss

    with mock.patch.object(GuardedTrainer, "training_step", timed):
        yield seconds
