"""Losses in chunks of rows, so that memory use does not grow with batch x vocabulary."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from llm2comp.model.compressor import Decoder

CHUNK = 128
"""Rows per chunk.

With the 49,152 tokens of SmolLM2, the float32 logits of a chunk take 25 MB. glibc returns blocks of
32 MB or more to the system at once, unless `llm2comp.utils.hardware.retain_freed_memory` was
called.
"""


def mean_over_samples(mask: Tensor) -> Tensor:
    """Return weights that average a loss over the positions of a sample, then over samples.

    Args:
        mask: `(batch, length)`, true where a loss is.

    Returns:
        `(mask.sum(),)`, one weight per true position. The weighted losses are to be summed.
    """
    per_sample = 1.0 / (mask.sum(dim=1, keepdim=True) * len(mask))
    return per_sample.expand(mask.shape)[mask]


def sum_over_chunks(
    loss: Callable[..., Tensor], states: Tensor, *rows: Tensor, size: int | None = None
) -> Tensor:
    """Return the sum of `loss(states, *rows)` over chunks of rows.

    Only `states` get a gradient, because the language model's head, which makes the logits, is
    frozen.

    Args:
        loss: returns the summed loss of a chunk, a scalar.
        states: `(n, …)`.
        *rows: tensors with the same first dimension n.
        size: rows per chunk; `CHUNK` by default.
    """
    chunks = list(zip(*(torch.split(row, size or CHUNK) for row in (states, *rows)), strict=True))
    if not (torch.is_grad_enabled() and states.requires_grad):
        return torch.stack([loss(*part) for part in chunks]).sum()
    total: Tensor = _WithGradient.apply(states, loss, chunks)  # type: ignore[no-untyped-call]
    return total


class _WithGradient(torch.autograd.Function):
    """Computes the gradient of each chunk in the forward pass, while its logits exist.

    Otherwise the backward pass would compute all logits again, which is slow if the vocabulary is
    large and the model is small (docs/performance.md).
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,  # noqa: ARG004 - named so that autograd knows whose gradient it is
        loss: Callable[..., Tensor],
        chunks: list[tuple[Tensor, ...]],
    ) -> Tensor:
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        for part, *rows in chunks:
            with torch.enable_grad():
                leaf = part.detach().requires_grad_()
                value = loss(leaf, *rows)
            gradients += torch.autograd.grad(value, leaf)
            losses.append(value.detach())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * above.to(gradient.dtype), None, None


def token_loss_from_memory(decoder: Decoder, memory: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `-log p(token | memory, tokens before)` over tokens, then over samples.

    Args:
        decoder: the frozen model.
        memory: `(batch, m, hidden)`.
        ids: `(batch, length)`, the tokens to predict, right-padded.
        mask: `(batch, length)`, true where a token is.

    Returns:
        A scalar in nats per token.
    """
    # A state predicts the token after its position, so the last token's state is not needed.
    not_needed = torch.zeros_like(mask[:, :1])
    states = decoder.student_states(memory, ids, torch.cat([mask, not_needed], dim=1))

    def loss(states: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
        return (cross_entropy(decoder.logits(states), tokens, reduction="none") * weights).sum()

    return sum_over_chunks(loss, states, ids[mask], mean_over_samples(mask))
