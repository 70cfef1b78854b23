"""What a run will need on this machine or on a GPU, and what to change if it does not fit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from datasets import DatasetDict
from transformers import PreTrainedModel

from llm2comp.model.backbone import backbone_folder
from llm2comp.model.base import open_base, transformer_folder
from llm2comp.model.causal_lm.dropout import remove_dropout
from llm2comp.model.causal_lm.few_layers import layers_of_each_kind
from llm2comp.model.causal_lm.parts import body_of
from llm2comp.model.lineage import Lineage
from llm2comp.model.loading import four_bit
from llm2comp.model.loading.checkpoint import read_config, read_tokenizer
from llm2comp.recipe import Contrastive, Pretext, Recipe, Stage, Supervised
from llm2comp.training.dry_run import count_trained, disk_needed
from llm2comp.training.planning.fitting import lineage_before, require_fitting
from llm2comp.training.planning.machines import UTILISATION, Gpu
from llm2comp.training.planning.rows import some_rows
from llm2comp.training.planning.stages import contrastive_step, pretext_step
from llm2comp.training.planning.step import Step, Trained
from llm2comp.training.pretext import objective_of
from llm2comp.utils.hardware import compute_dtype

OPTIMISER_BYTES = 12
"""Of a number that trains: itself and AdamW's two moments, in float32. Its gradient is measured."""
PROGRAM = 1.1e9
"""Bytes of Python, torch and the other libraries in a training process, as measured on Linux."""
HEAP = 1.5
"""On a processor, memory that a step takes for each byte of its tensors: batches of many shapes
leave gaps. Measured: 1.4 after 4 steps, 1.8 after 20."""
MAPPED = 4
"""Bytes of a number of the model in the file from which it is mapped: float32 at most. The number
itself, as it is trained or written, is beside it."""
CONTEXT = 1e9
"""Bytes of a GPU that CUDA and its libraries take. It is an assumption, not a measurement."""

SAME_RESULT = ("gradient_checkpointing", "mini_batch_size")
"""Settings that do not change what is trained. All others of `smaller` do."""
PASSAGES = "reading.passages"
"""A setting of stage 3."""


@dataclass(frozen=True)
class StagePlan:
    """What a stage needs.

    Attributes:
        stage: its name.
        steps: of the optimiser.
        trained: numbers that train.
        step: what one step needs.
        weights: bytes of weights, frozen or not, and of the optimiser.
        seconds: of all steps.
        changes: settings that would make the stage fit, as they are given to `llm2comp train`; None
            if it fits, and an empty list if nothing helps.
    """

    stage: str
    steps: int
    trained: int
    step: Step
    weights: float
    seconds: float
    changes: list[str] | None = None

    @property
    def memory(self) -> float:
        """The most bytes that weights and a step take at once."""
        return self.weights + self.step.peak


@dataclass(frozen=True)
class Plan:
    """What a run needs.

    Attributes:
        stages: what each stage needs.
        parameters: of the encoder.
        host: the most bytes of memory on the host.
        disk: bytes that the run writes at most.
        gpu: where it runs; None is this machine.
        room: bytes that a stage may take where it computes.
        dtype: the precision of training.
        in_4bit: whether frozen linear layers are in 4 bits.
    """

    stages: list[StagePlan]
    parameters: int
    host: float
    disk: float
    gpu: Gpu | None
    room: float
    dtype: torch.dtype
    in_4bit: bool


@torch.random.fork_rng(devices=[])
def plan_run(recipe: Recipe, gpu: Gpu | None = None) -> Plan:
    """Measure a step of each stage with few layers, and return what the whole run will need.

    Args:
        recipe: the run.
        gpu: where it will run; None is this machine.

    Raises:
        UserError: if the backbone, the base or the data cannot be had, or the encoder lacks what
            the stages train.
    """
    require_fitting(recipe, lineage_before(recipe))
    trained = _trained(recipe, gpu)
    whole = trained.on_meta()
    body = body_of(whole)
    numbers = {True: _count(whole), False: _count(body)}
    in_4bit = recipe.backbone.load_in_4bit
    frozen = {
        is_pretext: four_bit.bytes_of(model, trained.dtype, load_in_4bit=in_4bit)
        for is_pretext, model in ((True, whole), (False, body))
    }
    counts = count_trained(body, recipe.stages, trained.lineage)
    room = _room(gpu)
    weights = [
        (frozen[isinstance(stage, Pretext)] if stage.lora is not None else 0)
        + count * OPTIMISER_BYTES
        + _reads(stage) * numbers[True] * trained.dtype.itemsize
        for stage, count in zip(recipe.stages, counts, strict=True)
    ]
    stages = [
        _stage_plan(stage, trained, count, size, gpu, room)
        for stage, count, size in zip(recipe.stages, counts, weights, strict=True)
    ]
    during, written = recipe.evaluation.during, compute_dtype(recipe.save_dtype)
    keeps_best = during is not None and during.keep_best
    number = max(written.itemsize, trained.dtype.itemsize)
    on_host: list[float] = [(MAPPED + number) * numbers[True]]
    if gpu is None and not torch.cuda.is_available():
        on_host += [stage.memory for stage in stages]
        # The model that reads is loaded when the encoder is there.
        loading = zip(recipe.stages, weights, strict=True)
        on_host += [size + MAPPED * numbers[True] for stage, size in loading if _reads(stage)]
    return Plan(
        stages,
        numbers[False],
        PROGRAM + max(on_host),
        disk_needed(numbers[False] * written.itemsize, counts, keeps_best=keeps_best),
        gpu,
        room,
        trained.dtype,
        in_4bit,
    )


def _reads(stage: Stage) -> bool:
    """Return whether a stage has the frozen language model beside the encoder."""
    return isinstance(stage, Supervised) and stage.reading is not None


def _room(gpu: Gpu | None) -> float:
    """Return the bytes that a stage may take on a GPU or, without one, on this machine."""
    if gpu is not None:
        return gpu.memory - CONTEXT
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory - CONTEXT
    return float(psutil.virtual_memory().available) - PROGRAM


def _stage_plan(
    stage: Stage, trained: Trained, count: int, weights: float, gpu: Gpu | None, room: float
) -> StagePlan:
    """Return what a stage needs, and what would make it fit."""
    if not stage.steps:
        return StagePlan(stage.stage, 0, count, Step(0.0, 0.0, 0.0, 0.0), weights, 0.0)
    rows = some_rows(trained.recipe, stage, trained.tokenizer)
    step = stage_step(stage, trained, rows)
    seconds = stage.steps * (
        step.flops / (UTILISATION * gpu.flops(trained.dtype)) if gpu else step.seconds
    )
    plan = StagePlan(stage.stage, stage.steps, count, step, weights, seconds)
    if plan.memory <= room:
        return plan
    changes: dict[str, int | bool] = {}
    for change in smaller(stage):
        changes |= change
        smaller_stage = _changed(stage, changes)
        if isinstance(stage, Pretext) and "batch_size" in change:  # a row is a whole batch
            rows = some_rows(trained.recipe, smaller_stage, trained.tokenizer)
        if weights + stage_step(smaller_stage, trained, rows).peak <= room:
            named = [f"{stage.stage}.{key}={str(value).lower()}" for key, value in changes.items()]
            return replace(plan, changes=named)
    return replace(plan, changes=[])


def _changed(stage: Stage, changes: dict[str, int | bool]) -> Stage:
    """Return a stage with settings that `smaller` yields."""
    update: dict[str, Any] = {key: value for key, value in changes.items() if key != PASSAGES}
    if PASSAGES in changes:
        assert isinstance(stage, Supervised)
        assert stage.reading is not None
        update["reading"] = stage.reading.model_copy(update={"passages": changes[PASSAGES]})
    return stage.model_copy(update=update)


def smaller(stage: Stage) -> Iterator[dict[str, int | bool]]:
    """Yield settings, one after another, with which a stage needs less memory.

    Those of `SAME_RESULT` come first.
    """
    if not stage.gradient_checkpointing:
        yield {"gradient_checkpointing": True}
    name = "mini_batch_size" if isinstance(stage, Contrastive) else "batch_size"
    size = min(getattr(stage, name), stage.batch_size)
    while size > 1:
        size //= 2
        yield {name: size}
    if isinstance(stage, Supervised) and stage.reading is not None:
        size = min(stage.reading.passages, stage.batch_size)
        while size > 1:
            size //= 2
            yield {PASSAGES: size}
    if isinstance(stage, Contrastive):  # a batch with scores is not cut into mini-batches
        size = stage.batch_size
        while size > 2:
            size //= 2
            yield {"batch_size": size}


def stage_step(stage: Stage, trained: Trained, rows: DatasetDict) -> Step:
    """Return what a step of a stage needs.

    Args:
        stage: the stage.
        trained: what the run trains.
        rows: some of its rows.
    """
    if isinstance(stage, Pretext):
        step = pretext_step(stage, trained, rows["passages"])
    else:
        step = contrastive_step(stage, trained, rows)
    return replace(step, peak=HEAP * step.peak) if trained.device.type == "cpu" else step


def _count(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _trained(recipe: Recipe, gpu: Gpu | None) -> Trained:
    """Return what a run trains, without reading its weights.

    Raises:
        UserError: if the base or the backbone cannot be read.
    """
    if recipe.base is not None:
        base = open_base(recipe)
        folder, name, lineage = transformer_folder(base.folder), recipe.base, base.lineage
    else:
        backbone, (first, *_) = recipe.backbone, recipe.stages
        assert isinstance(first, Pretext)  # as `lineage_before` has checked
        code = backbone.trust_remote_code
        folder = backbone_folder(backbone.name, backbone.revision, code=code, weights=False)
        name, lineage = backbone.name, Lineage.start(recipe, objective_of(first).prompt_format)
    trust = recipe.backbone.trust_remote_code
    config = read_config(folder, name, trust_remote_code=trust)
    remove_dropout(config)
    tokenizer = read_tokenizer(folder, name, trust_remote_code=trust)
    precision = recipe.backbone.dtype
    if gpu is not None and precision == "auto":
        precision = gpu.precision
    trained = Trained(
        recipe,
        config,
        tokenizer,
        lineage,
        config.num_hidden_layers,
        compute_dtype(precision),
        _device(gpu),
    )
    return replace(trained, layers=layers_of_each_kind(config, trained.on_meta()))


def _device(gpu: Gpu | None) -> torch.device:
    """Return where steps are measured, or counted if the run is for a GPU by name."""
    if gpu is not None:
        return torch.device("meta")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
