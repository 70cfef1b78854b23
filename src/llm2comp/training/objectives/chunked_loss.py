"""Losses over rows of states, in chunks, so that memory does not grow with batch x vocabulary."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from llm2comp.model.compressor import Compressor

CHUNK = 128
"""Rows whose logits exist at a time: 128 x 49,152 float32 logits are 25 MB.

Of 32 MB or more glibc keeps no block, unless it is told to (:mod:`llm2comp.allocator`).
"""


def mean_over_samples(mask: Tensor) -> Tensor:
    """Return a weight for each true position of ``mask`` (batch, length).

    Summed with these weights, a per-position loss is averaged over the
    positions of a sample, then over samples.
    """
    per_sample = 1.0 / (mask.sum(dim=1, keepdim=True) * len(mask))
    return per_sample.expand(mask.shape)[mask]


def sum_over_chunks(
    loss: Callable[..., Tensor], states: Tensor, *rows: Tensor, size: int | None = None
) -> Tensor:
    """Sum ``loss(states, *rows)`` over chunks of ``size`` rows (by default :data:`CHUNK`).

    Args:
        loss: makes the logits of a chunk, and what they cost. The weights that it makes them with
            are frozen: only ``states`` get a gradient.
        states: ``(n, …)``.
        rows: of the same n.
        size: rows at a time.
    """
    chunks = list(zip(*(torch.split(row, size or CHUNK) for row in (states, *rows)), strict=True))
    if not (torch.is_grad_enabled() and states.requires_grad):
        return torch.stack([loss(*part) for part in chunks]).sum()
    total: Tensor = _WithGradient.apply(states, loss, chunks)  # type: ignore[no-untyped-call]
    return total


class _WithGradient(torch.autograd.Function):
    """Takes each chunk's gradient while its logits are there, so that none are made twice.

    That matters where the vocabulary is large and the model small (docs/performance.md).
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


def token_loss_from_memory(
    compressor: Compressor, memory: Tensor, ids: Tensor, mask: Tensor
) -> Tensor:
    """Return the mean over tokens, then over samples, of ``-log p(token | memory, tokens before)``.

    Args:
        compressor: holds the frozen decoder.
        memory: ``(batch, m, hidden)``.
        ids: ``(batch, length)``, the tokens to predict, right-padded.
        mask: ``(batch, length)``, true where a token is.
    """
    # The state at a position predicts the token after it, and none is after the last.
    nothing = torch.zeros_like(mask[:, :1])
    states = compressor.student_states(memory, ids, torch.cat([mask, nothing], dim=1))

    def loss(states: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
        return (cross_entropy(compressor.logits(states), tokens, reduction="none") * weights).sum()

    return sum_over_chunks(loss, states, ids[mask], mean_over_samples(mask))
