"""Attention for processors: two matrix products and a softmax, for texts of ordinary length.

PyTorch's fused attention saves memory. On a processor, and on texts of some hundred tokens,
it takes longer than the products that it consists of (docs/performance.md), and so does its
backward pass. This one is registered with transformers under a
name of its own, so that no model code is touched.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

NAME = "llm2comp_products"
LONGEST = {torch.bfloat16: 512, torch.float32: 128}
"""Up to so many tokens the products are faster; longer texts take the fused attention."""


def for_encoding(model: PreTrainedModel) -> None:
    """Set a model to read each text once: no key-value cache, and attention by products."""
    model.config.use_cache = False
    use_products(model)


def use_products(model: PreTrainedModel) -> None:
    """Let a model on a processor attend by :func:`attend`, if it attends by ``sdpa``."""
    if not torch.cuda.is_available() and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


def use_fused(model: PreTrainedModel) -> None:
    """Undo :func:`use_products`, for what traces a model: its choice by length is no constant."""
    if model.config._attn_implementation == NAME:
        model.set_attn_implementation("sdpa")


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' ``sdpa`` does, with the precision of its ``eager``.

    Args:
        module: the attention layer.
        query: ``(batch, heads, length, width)``.
        key: ``(batch, key heads, length, width)``; query heads share key heads in groups.
        value: as ``key``.
        attention_mask: ``(batch, 1, length, length)``, true where a query may look; none where
            it may look everywhere, or everywhere before it.
        dropout: of attention weights.
        scaling: of the products; one over the square root of the width, when not given.
        is_causal: whether queries look only back, where there is no mask; as the layer has it,
            when not given.
        others: what other kinds of attention know.

    Returns:
        ``(batch, length, heads, width)``, and no weights.
    """
    batch, heads, length, width = query.shape
    keys, seen = key.shape[1], key.shape[2]
    alike = length == seen and value.shape == key.shape and others.get("position_bias") is None
    if not alike or length > LONGEST.get(query.dtype, 0):
        fused = AttentionInterface()["sdpa"]  # type: ignore[no-untyped-call]
        options = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **others}
        return cast(
            tuple[Tensor, None], fused(module, query, key, value, attention_mask, **options)
        )
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    group = heads // keys
    stacked = (batch * keys, group * length)
    bias = _bias(attention_mask, query, causal=causal)[:, :, None]
    scores = torch.baddbmm(
        bias.expand(batch, keys, group, length, length).reshape(*stacked, length),
        query.reshape(*stacked, width),
        key.reshape(batch * keys, length, width).transpose(1, 2),
        alpha=width**-0.5 if scaling is None else scaling,
    )
    weights = scores.softmax(-1)
    if dropout:
        weights = nn.functional.dropout(weights, dropout)
    mixed = torch.bmm(weights, value.reshape(batch * keys, length, width))
    return mixed.view(batch, heads, length, width).transpose(1, 2).contiguous(), None


def _bias(mask: Tensor | None, query: Tensor, *, causal: bool) -> Tensor:
    """Return what is added to scores, ``(batch or 1, 1, length, length)``."""
    shape = (1, 1, query.shape[2], query.shape[2])
    if mask is None and not causal:
        return query.new_zeros(shape)
    if mask is None:
        mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    # Not minus infinity: the softmax of a row that sees nothing, a pad's, would be nan.
    return query.new_zeros(mask.shape).masked_fill(~mask, torch.finfo(query.dtype).min)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
