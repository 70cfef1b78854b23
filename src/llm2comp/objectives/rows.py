"""Losses over rows of states, in chunks, so that memory does not grow with batch x vocabulary."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 256
"""Rows whose logits exist at a time: 256 x 49,152 float32 logits are 50 MB."""


def mean_over_samples(mask: Tensor) -> Tensor:
    """Return a weight for each true position of ``mask`` (batch, length).

    Summed with these weights, a per-position loss is averaged over the
    positions of a sample, then over samples.
    """
    per_sample = 1.0 / (mask.sum(dim=1, keepdim=True) * len(mask))
    return per_sample.expand(mask.shape)[mask]


def sum_over_chunks(loss: Callable[..., Tensor], *rows: Tensor, size: int | None = None) -> Tensor:
    """Sum ``loss(*rows)`` over chunks of ``size`` rows (by default :data:`CHUNK`).

    Logits are made again in the backward pass.
    """
    chunks = list(zip(*(torch.split(row, size or CHUNK) for row in rows), strict=True))
    if not torch.is_grad_enabled():
        return torch.stack([loss(*part) for part in chunks]).sum()
    return torch.stack([checkpoint(loss, *part, use_reentrant=False) for part in chunks]).sum()
