"""What a training step needs, measured with models of few layers and the widths of the real one.

The step is the one that training takes: the same objective or loss, LoRA and attention, on texts of
the run. What it needs grows linearly with the number of layers and with the number of rows, so
four measurements tell what the whole model needs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llm2comp.model.attention import configure_attention
from llm2comp.model.causal_lm.few_layers import random_model, with_layers
from llm2comp.model.causal_lm.parts import positions_of
from llm2comp.model.lineage import Lineage
from llm2comp.model.memory_tokens import add_memory_tokens, extended_tokenizer
from llm2comp.recipe import Recipe
from llm2comp.training.planning.meter import Need, measure
from llm2comp.utils.hardware import free_unused_memory

OPERATIONS = 5e11
"""About as many floating-point operations are measured at once, so that it takes seconds."""


@dataclass(frozen=True)
class Trained:
    """What a run trains.

    Attributes:
        recipe: the run.
        config: of the language model, or of an encoder of others, without dropout.
        tokenizer: of it, without memory tokens.
        lineage: of the run before its first stage.
        layers: a number of first layers among which each kind of layer is.
        dtype: the precision of training.
        device: where steps are measured; on `meta` they are counted only.
    """

    recipe: Recipe
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    lineage: Lineage
    layers: int
    dtype: torch.dtype
    device: torch.device

    def of_layers(
        self, layers: int, *, head: bool
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return a model of few layers with random weights, and its tokenizer.

        It has memory tokens, unless the run starts from an encoder of others.

        Args:
            layers: their number.
            head: whether it has a language-modelling head.
        """
        model = random_model(
            with_layers(self.config, layers),
            head=head,
            device=str(self.device),
            dtype=self.dtype,
            trust_remote_code=self.recipe.backbone.trust_remote_code,
        )
        configure_attention(model)
        if self.lineage.method is None:
            return model, self.tokenizer
        backbone, memory, prompt_format = self.lineage.method
        tokenizer = add_memory_tokens(
            model, self.tokenizer, memory, self.recipe.seed, prompt_format, backbone.add_bos
        )
        return model, tokenizer

    @cached_property
    def specials(self) -> int:
        """The tokens around a text: BOS, prompts and memory tokens."""
        if self.lineage.method is None:
            return int(self.tokenizer.num_special_tokens_to_add())
        backbone, memory, prompt_format = self.lineage.method
        rows = self.config.vocab_size
        tokenizer = extended_tokenizer(
            self.tokenizer, prompt_format, memory.tokens, rows, backbone.add_bos
        )
        return int(tokenizer.num_special_tokens_to_add())

    @property
    def memory_embeddings(self) -> int:
        """The number of memory embeddings that train."""
        if self.lineage.method is None:
            return 0
        _, memory, prompt_format = self.lineage.method
        return prompt_format.num_memory_embeddings(memory.tokens)

    def longest_text(self, wanted: int) -> int:
        """Return the most tokens of a text that are read where a stage wants so many."""
        limits = [positions_of(self.config)]
        if self.lineage.method is None:
            limits.append(self.lineage.max_length)
        return min([wanted, *(limit - self.specials for limit in limits if limit)])

    def on_meta(self, layers: int | None = None) -> PreTrainedModel:
        """Return the language model, or an encoder of others, without its weights.

        Args:
            layers: their number, if the model is to have few.
        """
        return random_model(
            self.config if layers is None else with_layers(self.config, layers),
            head=self.lineage.method is not None,
            device="meta",
            trust_remote_code=self.recipe.backbone.trust_remote_code,
        )


@dataclass(frozen=True)
class Step:
    """What a step of a stage needs, with the whole model.

    Attributes:
        peak: the most bytes that activations, gradients and logits take at once.
        tokens: that the encoder reads in a step on average, padding included.
        flops: floating-point operations.
        seconds: time on this machine.
    """

    peak: float
    tokens: float
    flops: float
    seconds: float

    def beside(self, other: "Step") -> "Step":
        """Return what this step needs with a further part, whose tensors are there at once."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Step(*(one + two for one, two in pairs))


Build = Callable[[int, int], tuple[nn.Module, Callable[[], Tensor]]]
"""Takes numbers of layers and rows, and returns a model and what computes its loss."""


def whole_need(
    trained: Trained, build: Build, *, rows: int, row_tokens: int, backward: bool = True
) -> Need:
    """Return what rows need with the whole model, from steps with few layers and few rows.

    Args:
        trained: what the run trains.
        build: makes a model of few layers.
        rows: that are in memory at once in a real step.
        row_tokens: tokens of a row.
        backward: whether gradients are computed too.

    Returns:
        The need of all rows. Operations and time are those of the most rows that were measured,
        times how many more there are.
    """
    whole = trained.config.num_hidden_layers
    layers = sorted({trained.layers, min(whole, 3 * trained.layers)})
    numbers = sum(p.numel() for p in trained.on_meta(layers[-1]).parameters())
    affordable = int(OPERATIONS / (6 * numbers * row_tokens))
    most = max(2 if rows > 1 else 1, min(rows, affordable))
    counts = sorted({-(-most // 2), most})

    def need(number: int, count: int) -> Need:
        model, loss = build(number, count)

        def step() -> None:
            half = trained.dtype == torch.bfloat16
            with (
                torch.set_grad_enabled(backward),
                torch.autocast(trained.device.type, trained.dtype, enabled=half),
            ):
                value = loss()
            if backward:
                value.backward()  # type: ignore[no-untyped-call]
            model.zero_grad(set_to_none=True)

        try:
            return measure(step, model)
        finally:
            free_unused_memory()

    few, many = (
        _extrapolated([need(number, count) for number in layers], layers, whole)
        for count in (counts[0], counts[-1])
    )
    bytes_of_all = _extrapolated([few, many][: len(counts)], counts, rows).bytes
    share = rows / counts[-1]
    return Need(bytes_of_all, share * many.flops, share * many.seconds)


def _extrapolated(needs: list[Need], sizes: list[int], size: float) -> Need:
    """Return the need at a size, from needs at one or two sizes."""
    if len(needs) == 1:
        return needs[0]
    return needs[0].extended(needs[1], (size - sizes[0]) / (sizes[1] - sizes[0]))
