"""Compares one loss and its gradient on the GPU with those of the processor, in many ways.

The weights and the batch are the same in all cases. LoRA's `B` is random, because with its zeros
the adapter would change nothing and most of the gradient would be zero.
"""

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import is_flash_attn_2_available

from gpucheck import texts
from gpucheck.device import device, synchronize
from gpucheck.rows import Found, NotRunError, Recorder
from gpucheck.workshop import SEED, Workshop
from llm2comp.model import encoder
from llm2comp.model.backbone import load_backbone
from llm2comp.model.causal_lm.parts import body_of
from llm2comp.model.lora import add_adapter, trainable_parameters
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.recipe import Pretext
from llm2comp.training.losses.length_sorted import LengthSorted
from llm2comp.training.pretext import pretext_model
from llm2comp.training.trainer import compile_blocks

RANDOM_B = 0.02
"""Standard deviation of the random numbers in LoRA's `B`."""
SAME = 1e-3
"""Largest relative difference of two computations in float32, of the loss and of the gradient."""
HALF_LOSS, HALF_COSINE = 0.08, 0.95
"""In bfloat16: largest relative difference of the loss from float32, and smallest cosine of the
gradients."""


@dataclass(frozen=True)
class Case:
    """One way to compute a loss and its gradient.

    Attributes:
        place: the device.
        dtype: of the frozen weights; with bfloat16, autocast as in training.
        attention: as transformers names it; None leaves it as it is.
        checkpointing: whether activations are computed again.
        compiled: whether the blocks are compiled.
        cached: whether the contrastive loss is computed in mini-batches (GradCache).
    """

    place: str
    dtype: torch.dtype = torch.float32
    attention: str | None = None
    checkpointing: bool = False
    compiled: bool = False
    cached: bool = False


@dataclass(frozen=True)
class Step:
    """A loss, and its gradient as one vector on the processor."""

    loss: float
    gradient: Tensor


Compute = Callable[[Case], Step]


def numbers(workshop: Workshop, record: Recorder) -> None:
    """Compare losses and gradients of stages 1 and 3."""
    here = device().type
    half = Case(here, torch.bfloat16)
    for name, compute in (
        ("distillation", cache(lambda case: pretext_step(workshop, case))),
        ("InfoNCE", cache(lambda case: contrastive_step(workshop, case))),
    ):
        exact = Case(here)
        check = _Comparison(record, name, compute)
        check.same("float32, GPU as processor", exact, Case("cpu"))
        check.same("gradient checkpointing", Case(here, checkpointing=True), exact)
        if name == "InfoNCE":
            check.same("GradCache", Case(here, cached=True), exact)
        check.near("bfloat16, sdpa", half, exact)
        flash = Case(here, torch.bfloat16, attention="flash_attention_2")
        check.near("bfloat16, flash attention", flash, exact)


def compiled(workshop: Workshop, record: Recorder) -> None:
    """Compare a step of stage 1 that is compiled, and one whose attention is, with a plain one."""
    here = device().type
    check = _Comparison(record, "distillation", cache(lambda case: pretext_step(workshop, case)))
    for what, case in (
        ("compiled", Case(here, torch.bfloat16, compiled=True)),
        ("flex attention", Case(here, torch.bfloat16, attention="flex_attention")),
    ):
        check.near(f"bfloat16, {what}", case, Case(here), compiles=workshop.sizes.compiles)


class _Comparison:
    """Compares cases of one loss, a row for each.

    Args:
        record: writes the rows.
        name: of the loss.
        compute: its cases.
    """

    def __init__(self, record: Recorder, name: str, compute: Compute) -> None:
        self.record, self.name, self.compute = record, name, compute

    def same(self, what: str, case: Case, other: Case) -> None:
        """Compare two cases in float32."""

        def run() -> Found:
            loss, gradient = difference(self.compute(case), self.compute(other))
            return Found(
                f"loss {loss:.1e}, gradient {gradient:.1e} apart",
                passed=loss <= SAME and gradient <= SAME,
                limit=f"{SAME:g}",
                numbers={"loss": loss, "gradient": gradient},
            )

        self.record.check(f"{self.name}: {what}", run)

    def near(self, what: str, case: Case, exact: Case, *, compiles: bool = True) -> None:
        """Compare a case in bfloat16 with one in float32."""

        def run() -> Found:
            if case.attention == "flash_attention_2" and not is_flash_attn_2_available():
                raise NotRunError("the package flash-attn is not installed")
            if case.compiled or case.attention == "flex_attention":
                require_compiler(case.place, wanted=compiles)
            one, other = self.compute(case), self.compute(exact)
            loss, _ = difference(one, other)
            cosine = float(nn.functional.cosine_similarity(one.gradient, other.gradient, 0))
            return Found(
                f"loss {loss:.2%} apart, cosine of gradients {cosine:.4f}",
                passed=loss <= HALF_LOSS and cosine >= HALF_COSINE,
                limit=f"{HALF_LOSS:.0%}, {HALF_COSINE:g}",
                numbers={"loss": loss, "cosine": cosine},
            )

        self.record.check(f"{self.name}: {what}", run)


def difference(one: Step, other: Step) -> tuple[float, float]:
    """Return the relative differences of two losses and of two gradients; not finite is NaN."""
    loss = abs(one.loss - other.loss) / abs(other.loss)
    gradient = (one.gradient - other.gradient).norm() / other.gradient.norm()
    return loss, float(gradient)


def require_compiler(place: str, *, wanted: bool) -> None:
    """Raise `NotRunError` if `torch.compile` cannot run here or is not wanted."""
    if not wanted:
        raise NotRunError("left out of the stand-in")
    compiler = os.environ.get("CC", "gcc") if place != "cpu" else os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise NotRunError(f"torch.compile needs a C compiler, and there is no {compiler}")


def pretext_step(workshop: Workshop, case: Case) -> Step:
    """Return the loss of stage 1 (CTKD) and its gradient."""
    recipe = workshop.recipe()
    (first, *_) = recipe.stages
    assert isinstance(first, Pretext)
    changes = {"gradient_checkpointing": case.checkpointing, "attention": "bidirectional"}
    stage = first.model_copy(update=changes)
    model, tokenizer = _backbone(workshop, case)
    extended = add_memory_tokens(model, tokenizer, recipe.memory, SEED, add_bos=True)
    pretext, collator = pretext_model(recipe, stage, model, extended)
    rows = _texts(workshop.sizes.tokens, 4)
    ids = [extended(row, add_special_tokens=False)["input_ids"] for row in rows]
    passages = [row[: workshop.sizes.tokens - 3 * place] for place, row in enumerate(ids)]
    splits = [len(row) * (4 - place) // 5 for place, row in enumerate(passages)]  # much padding
    batch = collator.batch(passages, splits)
    if case.compiled:
        compile_blocks(pretext.compressor.body)
    pretext.to(case.place)
    return _step(pretext, case, lambda: pretext(batch)["loss"])


def contrastive_step(workshop: Workshop, case: Case) -> Step:
    """Return the loss of stage 3 (InfoNCE with hard negatives) and its gradient."""
    recipe = workshop.recipe()
    stage = recipe.stages[2]
    model, tokenizer = _backbone(workshop, case)
    extended = add_memory_tokens(model, tokenizer, recipe.memory, SEED, add_bos=True)
    built = encoder.assemble(body_of(model), extended, recipe.memory.tokens, causal=False)
    built.requires_grad_(False)
    torch.manual_seed(SEED)
    body = encoder.encoder_body(built)
    assert stage.lora is not None
    add_adapter(body, stage.lora, recipe.memory.tokens)
    if case.checkpointing:
        body.gradient_checkpointing_enable({"use_reentrant": False})
    rows = [
        text[: len(text) // (1 + place % 4)]  # so that there is padding
        for place, text in enumerate(_texts(workshop.sizes.tokens, 12))
    ]
    columns = {"anchor": rows[:4], "positive": rows[4:8], "negative": rows[8:]}
    triples = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    batch = LengthSorted(preprocess_fn=built.preprocess)(triples)
    features = [
        {name: batch[f"{column}_{name}"].to(case.place) for name in ("input_ids", "attention_mask")}
        for column in columns
    ]
    loss: nn.Module
    if case.cached:
        loss = CachedMultipleNegativesRankingLoss(built, scale=20.0, mini_batch_size=3)
    else:
        loss = MultipleNegativesRankingLoss(built, scale=20.0)
    built.to(case.place)
    return _step(built, case, lambda: loss(features, torch.empty(0)))


def _backbone(workshop: Workshop, case: Case) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_backbone(workshop.backbone, dtype=case.dtype, attn_implementation=case.attention)


def _step(model: nn.Module, case: Case, compute: Callable[[], Tensor]) -> Step:
    """Return the loss and the gradient of a model with random numbers in LoRA's `B`."""
    generator = torch.Generator().manual_seed(SEED)
    parameters = trainable_parameters(model)
    for name, parameter in parameters.items():
        if "lora_B" in name:
            parameter.data = RANDOM_B * torch.randn(parameter.shape, generator=generator).to(
                parameter
            )
    model.train()
    with torch.autocast(case.place, case.dtype, enabled=case.dtype == torch.bfloat16):
        loss = compute()
    loss.backward()
    if case.place != "cpu":
        synchronize()
    kinds = {parameter.dtype for parameter in parameters.values()}
    if kinds != {torch.float32}:  # bfloat16 would lose small updates
        raise RuntimeError(f"what trains is not in float32 alone, but in {kinds}")
    missing = [name for name, parameter in parameters.items() if parameter.grad is None]
    if missing:
        raise RuntimeError(f"{len(missing)} parameters have no gradient, such as {missing[0]}")
    parts = [parameter.grad.float().cpu().flatten() for parameter in parameters.values()]
    return Step(float(loss.detach()), torch.cat(parts))


def _texts(tokens: int, count: int) -> list[str]:
    """Return texts with at least so many tokens."""
    generator = random.Random(SEED)
    return [texts.passage(generator, tokens) for _ in range(count)]
