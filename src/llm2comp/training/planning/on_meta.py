"""What a step needs on a GPU that is not here: counted with tensors that have no numbers.

The whole model and whole batches are on the device `meta`, where no operation takes time. What an
objective or a loss does with the states is little beside the passes through the model, so the
passes are named here, one by one. A test compares them with the objectives themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from llm2comp.model.causal_lm.few_layers import random_model
from llm2comp.model.causal_lm.parts import token_table
from llm2comp.model.compressor import Compressor, Decoder
from llm2comp.model.lora import add_adapter, trainable_parameters
from llm2comp.recipe import Contrastive, Pretext
from llm2comp.training.objectives.chunked_loss import sum_over_chunks
from llm2comp.training.objectives.distillation import Distillation
from llm2comp.training.objectives.embedding_prediction import EmbeddingPrediction
from llm2comp.training.objectives.mntp import MaskedNextTokenPrediction
from llm2comp.training.objectives.objective import Objective
from llm2comp.training.objectives.reconstruction import Reconstruction
from llm2comp.training.planning.meter import Need, count
from llm2comp.training.planning.step import Trained
from llm2comp.training.pretext import objective_of

FUSED = "llm2comp_fused_on_meta"
"""Name of an attention that keeps for its backward pass what fused attention on a GPU keeps."""


def pretext_need(stage: Pretext, trained: Trained, rows: int, length: int, split: int) -> Need:
    """Return what a batch of stage 1 needs.

    Args:
        stage: the stage.
        trained: what the run trains.
        rows: passages.
        length: tokens of a passage.
        split: tokens of a passage's text.
    """
    model = whole_model(trained, head=True)
    compressor = Compressor(
        model,
        trained.memory_embeddings,
        stage.lora,
        bos_id=1,
        causal=stage.attention != "bidirectional",
    )
    if stage.gradient_checkpointing:
        compressor.enable_gradient_checkpointing()
    compressor.train()
    passes = _Passes(stage, trained, compressor, rows, length, split)
    return count_on_meta(trained, compressor, passes.loss)


def contrastive_need(
    stage: Contrastive, trained: Trained, rows: int, length: int, *, backward: bool
) -> Need:
    """Return what texts that are in memory at once need in stage 2 or 3.

    Args:
        stage: the stage.
        trained: what the run trains.
        rows: texts.
        length: tokens of each, those around it included.
        backward: whether gradients are computed too.
    """
    body = encoder(stage, trained)
    return count_on_meta(
        trained, body, lambda: read(body, rows, length).float().sum(), backward=backward
    )


def encoder(stage: Contrastive, trained: Trained) -> PreTrainedModel:
    """Return the whole body that stage 2 or 3 trains."""
    body = whole_model(trained, head=False)
    body.requires_grad_(stage.lora is None)
    if stage.lora is not None:
        add_adapter(body, stage.lora, trained.memory_embeddings)
    if stage.gradient_checkpointing:
        body.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    body.train()
    return body


def whole_model(trained: Trained, *, head: bool, memory: bool = True) -> PreTrainedModel:
    """Return the whole model.

    Args:
        trained: what the run trains.
        head: whether it has a language-modelling head.
        memory: whether it has memory embeddings.
    """
    config = type(trained.config).from_dict(trained.config.to_dict())
    config.vocab_size += trained.memory_embeddings * memory
    model = random_model(
        config,
        head=head,
        device="meta",
        dtype=trained.dtype,
        trust_remote_code=trained.recipe.backbone.trust_remote_code,
    )
    model.config.use_cache = False
    model.set_attn_implementation(FUSED)
    return model


def count_on_meta(
    trained: Trained, model: nn.Module, loss: Callable[[], Tensor], *, backward: bool = True
) -> Need:
    """Return what a loss and its gradients need.

    Args:
        trained: what the run trains.
        model: what the loss is computed with. Its weights are not counted.
        loss: returns the loss.
        backward: whether gradients are computed too.
    """
    # Autocast, which does nothing on this device, computes the LoRA in the precision of training.
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.to(trained.dtype)

    def step() -> None:
        with torch.set_grad_enabled(backward):
            value = loss()
        if backward:
            value.backward()  # type: ignore[no-untyped-call]

    return count(step, model)


@dataclass(frozen=True)
class _Passes:
    """The passes that the objective of stage 1 makes for a batch."""

    stage: Pretext
    trained: Trained
    compressor: Compressor
    rows: int
    length: int
    split: int

    def loss(self) -> Tensor:
        """Return what has the gradients of the batch's loss."""
        objective, compressor = objective_of(self.stage), self.compressor
        specials = self.trained.specials
        if issubclass(objective, MaskedNextTokenPrediction):
            states = read(compressor.body, self.rows, specials + self.length).flatten(0, 1)
            drawn = int(self.stage.mask_probability * self.rows * self.length)
            return _token_loss(compressor, states[: max(1, drawn)])
        memory = self._memory()
        if issubclass(objective, EmbeddingPrediction):
            losses = [
                _token_loss(compressor, part.flatten(0, 1)) for part in (memory, self._memory())
            ]
            return torch.stack(losses).sum()
        return loss_from_memory(objective, compressor, memory, self.split, self.length - self.split)

    def _memory(self) -> Tensor:
        """Return the states `(rows, k, hidden)` at the memory tokens."""
        assert self.trained.lineage.method is not None
        k = self.trained.lineage.method[1].tokens
        length = self.trained.specials + self.split
        return read(self.compressor.body, self.rows, length)[:, -k:]


def loss_from_memory(
    objective: type[Objective], decoder: Decoder, memory: Tensor, text: int, after: int
) -> Tensor:
    """Return what has the gradients of an objective's loss given memory, on any device.

    Args:
        objective: compresses.
        decoder: reads the memory.
        memory: `(rows, k, hidden)`.
        text: tokens of a text.
        after: tokens after it.
    """
    wanted = text if issubclass(objective, Reconstruction) else after
    with decoder.frozen():
        states = _read_on(decoder, memory, wanted)
        if not issubclass(objective, Distillation):
            return _token_loss(decoder, states)
        with torch.no_grad():
            teacher = read(decoder.body, len(memory), 1 + text + after)
    return _token_loss(decoder, states, teacher[:, -1 - wanted :].flatten(0, 1))


def read(body: PreTrainedModel, rows: int, length: int) -> Tensor:
    """Return the states `(rows, length, hidden)` of texts."""
    return cast(Tensor, body(_ids(body, rows, length)).last_hidden_state)


def _ids(body: PreTrainedModel, rows: int, length: int) -> Tensor:
    device = token_table(body).weight.device
    return torch.zeros(rows, length, dtype=torch.long, device=device)


def _read_on(decoder: Decoder, memory: Tensor, tokens: int) -> Tensor:
    """Return the states at the last memory position and at so many tokens after it."""
    embedded = token_table(decoder.body)(_ids(decoder.body, len(memory), 1 + tokens))
    inputs = torch.cat([embedded[:, :1], memory.to(embedded.dtype), embedded[:, 1:]], dim=1)
    states: Tensor = decoder.body(inputs_embeds=inputs).last_hidden_state
    return states[:, memory.shape[1] :].flatten(0, 1)


def _token_loss(decoder: Decoder, states: Tensor, teacher: Tensor | None = None) -> Tensor:
    """Return a loss of logits, computed in chunks as the objectives do."""

    def loss(states: Tensor, *others: Tensor) -> Tensor:
        parts = [decoder.logits(part).log_softmax(-1) for part in (states, *others)]
        return sum(part.sum() for part in parts)  # type: ignore[return-value]

    return sum_over_chunks(loss, states, *([] if teacher is None else [teacher]))


class _Fused(torch.autograd.Function):
    """Attention that keeps its inputs and its output, and recomputes the weights."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG004
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _attend(
    module: nn.Module,  # noqa: ARG001
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001
    **options: Any,  # noqa: ARG001
) -> tuple[Tensor, None]:
    """Attend as transformers' `AttentionInterface` asks for."""
    return cast(Tensor, _Fused.apply(query, key, value)), None  # type: ignore[no-untyped-call]


AttentionInterface.register(FUSED, _attend)
