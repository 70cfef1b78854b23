"""Attention for processors: two matrix products and a softmax, of a block of queries at once.

On a processor PyTorch's fused attention takes longer than the products that it consists of
(docs/performance.md), and so does its backward pass. This one is registered with transformers
under a name of its own, so that no model code is touched.
"""

from collections.abc import Iterator, MutableMapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

NAME = "llm2comp_matmul"
BLOCK = 128
"""Queries at once. Their products with keys behind them are left out where none may look there."""
SHORT = 128
"""Up to so many tokens the products are faster whatever queries may see."""
LONGEST_TRAINED = 512
"""Longer texts that are trained take the fused attention, which keeps no weights for gradients."""
_BIASES: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()
"""What is added to scores, by mask: one for all layers, gone with the mask."""


def configure_attention(model: PreTrainedModel) -> None:
    """Set a model to read each text once: no key-value cache, and attention by products."""
    model.config.use_cache = False
    use_matmul_attention(model)


def use_matmul_attention(model: PreTrainedModel) -> None:
    """Let a model on a processor attend by :func:`attend`, if it attends by ``sdpa``."""
    if not torch.cuda.is_available() and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


def use_sdpa(model: PreTrainedModel) -> None:
    """Undo :func:`use_matmul_attention` for tracing: its choice by length is no constant."""
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
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    back = _looks_back(attention_mask, length, causal=causal)
    if not alike or not _faster(query, looks_back=back):
        fused = AttentionInterface()["sdpa"]  # type: ignore[no-untyped-call]
        options = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **others}
        return cast(
            tuple[Tensor, None], fused(module, query, key, value, attention_mask, **options)
        )
    bias = _bias(attention_mask, query, causal=causal)[:, :, None]
    queries = query.reshape(batch * keys, heads // keys, length, width)
    turned = key.reshape(batch * keys, length, width).transpose(1, 2)
    values = value.reshape(batch * keys, length, width)
    mixed, end = [], 0
    for part, bounds in _blocks(queries, bias):
        end += part.shape[2]
        seen = end if back else length
        rows = (batch * keys, heads // keys * part.shape[2])
        scores = torch.baddbmm(
            bounds[..., :seen].expand(batch, keys, heads // keys, -1, -1).reshape(*rows, seen),
            part.reshape(*rows, width),
            turned[..., :seen],
            alpha=width**-0.5 if scaling is None else scaling,
        )
        weights = scores.softmax(-1)
        if dropout:
            weights = nn.functional.dropout(weights, dropout)
        block = torch.bmm(weights, values[:, :seen]).view(batch, heads, -1, width)
        mixed.append(block.transpose(1, 2))
    return torch.cat(mixed, 1), None


def _faster(query: Tensor, *, looks_back: bool) -> bool:
    """Whether products are faster than the fused attention, and memory allows them."""
    length = query.shape[2]
    if query.dtype not in (torch.bfloat16, torch.float32):
        return False
    if length <= SHORT:
        return True
    if torch.is_grad_enabled():
        return length <= LONGEST_TRAINED
    return looks_back or query.dtype == torch.bfloat16


def _blocks(queries: Tensor, bias: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a block of queries at once, and their rows of the bias."""
    if torch.compiler.is_compiling():  # a graph is one for all lengths
        return iter([(queries, bias)])
    return zip(torch.split(queries, BLOCK, 2), torch.split(bias, BLOCK, 3), strict=True)


def _looks_back(mask: Tensor | None, length: int, *, causal: bool) -> bool:
    """Whether no block of queries may look at keys behind it."""
    if mask is None:
        return causal
    if torch.compiler.is_compiling():  # a graph does not look at values
        return False
    ends = range(BLOCK, length, BLOCK)
    return not any(mask[..., end - BLOCK : end, end:].any() for end in ends)


def _bias(mask: Tensor | None, query: Tensor, *, causal: bool) -> Tensor:
    """Return what is added to scores, ``(batch or 1, 1, length, length)``."""
    shape = (1, 1, query.shape[2], query.shape[2])
    if mask is None and not causal:
        return query.new_zeros(shape)
    if mask is None:
        return _of_mask(torch.ones(shape, dtype=torch.bool, device=query.device).tril(), query)
    if torch.compiler.is_compiling():
        return _of_mask(mask, query)
    kept = _BIASES.get(mask)
    if kept is None or kept.dtype != query.dtype:
        _BIASES[mask] = kept = _of_mask(mask, query)
    return kept


def _of_mask(mask: Tensor, query: Tensor) -> Tensor:
    # Not minus infinity: the softmax of a row that sees nothing, a pad's, would be nan.
    return query.new_zeros(mask.shape).masked_fill(~mask, torch.finfo(query.dtype).min)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
