"""Attention for processors: two matrix products and a softmax, for a block of queries at a time.

On a processor PyTorch's fused attention is slower than the two products that it consists of
(docs/performance.md), and so is its backward pass. The attention of this module is registered with
transformers under its own name, so no model code changes.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.masking_utils import sdpa_mask
from transformers.utils.import_utils import is_flash_attn_2_available

from llm2comp.errors import UserError, one_line
from llm2comp.model.loading.checkpoint import silent

NAME = "llm2comp_matmul"
BLOCK = 128
"""Queries per block. With causal attention, products with later keys are skipped block by block."""
SHORT = 128
"""Up to this many tokens the products are faster, whether attention is causal or not."""
LONGEST_TRAINED = 512
"""In training, longer texts take the fused attention, because it stores no attention weights."""
MASKED = torch.finfo(torch.bfloat16).min
"""Added to the score of a key that a query must not see. float32 represents this number exactly
too. It is not minus infinity, because the softmax of a fully masked row would then be NaN."""

KERNELS = ("flash_attention_2", "flex_attention")
"""Implementations that are made for GPUs. Without one, only `flex_attention` computes at all."""
NOT_HANDLED = ("position_bias", "softcap", "s_aux")
"""Options that change the attention weights. transformers' own function handles or refuses them."""


def configure_attention(model: PreTrainedModel, implementation: str | None = None) -> None:
    """Set a model to read each text once, without key-value cache, and choose how it attends.

    Args:
        model: changed in place. On a machine with a GPU it is moved there if `implementation` is
            one of `KERNELS`.
        implementation: the name that transformers has for it; None for `use_matmul_attention`.

    Raises:
        UserError: if the model cannot attend so.
    """
    model.config.use_cache = False
    if implementation is None:
        use_matmul_attention(model)
        return
    if implementation in KERNELS and torch.cuda.is_available():
        cast(nn.Module, model).cuda()
    try:
        with silent():
            model.set_attn_implementation(implementation)
        reason = "the attention of this model cannot be chosen"
    except (ImportError, ValueError) as error:
        reason = one_line(error)
    if model.config._attn_implementation != implementation:
        raise UserError(
            f"attn_implementation: {type(model).__name__} cannot attend by {implementation} "
            f"({reason}); take another, or leave the key out"
        )


def require_attention(implementation: str | None, dtype: torch.dtype, *, training: bool) -> None:
    """Check that this machine can compute attention as it was asked for.

    Args:
        implementation: as `configure_attention` takes it.
        dtype: in which it is computed.
        training: whether gradients are computed too.

    Raises:
        UserError: if it cannot.
    """
    wanted = f"attn_implementation: {implementation}"
    flash = implementation == "flash_attention_2"
    if not torch.cuda.is_available() and (flash or (implementation in KERNELS and training)):
        lacks = "" if flash else " to train"
        raise UserError(f"{wanted} needs a GPU{lacks}, and there is none here; leave the key out")
    if flash and not is_flash_attn_2_available():
        raise UserError(
            f"{wanted} needs the package flash-attn: pip install flash-attn --no-build-isolation"
        )
    if flash and dtype == torch.float32:
        raise UserError(f"{wanted} has no float32, which is the precision here; take sdpa")


def record_attention(config: PreTrainedConfig, *, causal: bool) -> None:
    """Record in an encoder's configuration whether its attention is causal.

    transformers reads `is_causal`, and embedding servers read `use_bidirectional_attention`. Some
    architectures have a setting of that name themselves. Gemma 4 has other values for it. Gemma 3
    halves its window when it reads the setting, which transformers before 5.23 does not undo when
    it writes: there the setting keeps its default.

    Args:
        config: changed in place.
        causal: whether the encoder's attention is causal.
    """
    config.is_causal = causal
    try:
        config.use_bidirectional_attention = not causal
    except StrictDataclassFieldValidationError:
        config.use_bidirectional_attention = None if causal else "all"
    if changes_window(config):
        config.use_bidirectional_attention = False


def changes_window(config: PreTrainedConfig) -> bool:
    """Return whether a configuration that is written and read has another sliding window."""
    again = type(config).from_dict(config.to_dict())
    return getattr(again, "sliding_window", None) != getattr(config, "sliding_window", None)


def use_matmul_attention(model: PreTrainedModel) -> None:
    """Let a model use `attend` if it runs on a processor and uses `sdpa` now.

    Args:
        model: changed in place.
    """
    if not torch.cuda.is_available() and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


def use_sdpa(model: PreTrainedModel) -> None:
    """Undo `use_matmul_attention` before a model is traced.

    `attend` chooses its method by the length of the texts, and a trace would fix that choice.

    Args:
        model: changed in place.
    """
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
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' `sdpa` does, with the precision of its `eager`.

    The signature is the one that transformers' `AttentionInterface` asks for.

    Args:
        module: the attention layer.
        query: `(batch, heads, length, width)`.
        key: `(batch, key heads, length, width)`; groups of query heads share a key head.
        value: as `key`.
        attention_mask: `(batch, 1, length, length)`, either additive, as `additive_mask` makes it,
            or boolean and true where a query may see a key. Without it a query sees every key, or
            every key up to its own position.
        dropout: of the attention weights.
        scaling: factor of the scores; by default one over the square root of `width`.
        is_causal: without a mask, whether a query sees only keys up to its own position; by
            default as the layer says.
        options: further options of transformers' attention functions.

    Returns:
        `(batch, length, heads, width)`, and None in the place of attention weights.
    """
    batch, heads, length, width = query.shape
    key_heads, key_length = key.shape[1], key.shape[2]
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    mask = None if attention_mask is None else _additive(attention_mask, query.dtype)
    skip_later_keys = _is_causal_by_block(mask, length, causal=causal)
    self_attention = length == key_length and value.shape == key.shape
    if (
        not self_attention
        or any(options.get(name) is not None for name in NOT_HANDLED)
        or not _products_are_faster(query, causal=skip_later_keys)
    ):
        sdpa = AttentionInterface()["sdpa"]  # type: ignore[no-untyped-call]
        options |= {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
        return cast(tuple[Tensor, None], sdpa(module, query, key, value, mask, **options))
    bias = (_bias_without_mask(query, causal=causal) if mask is None else mask)[:, :, None]
    queries = query.reshape(batch * key_heads, heads // key_heads, length, width)
    keys = key.reshape(batch * key_heads, length, width).transpose(1, 2)
    values = value.reshape(batch * key_heads, length, width)
    outputs, end = [], 0
    for block, block_bias in _blocks(queries, bias):
        end += block.shape[2]
        seen = end if skip_later_keys else length
        rows = (batch * key_heads, heads // key_heads * block.shape[2])
        scores = torch.baddbmm(
            block_bias[..., :seen]
            .expand(batch, key_heads, heads // key_heads, -1, -1)
            .reshape(*rows, seen),
            block.reshape(*rows, width),
            keys[..., :seen],
            alpha=width**-0.5 if scaling is None else scaling,
        )
        weights = scores.softmax(-1)
        if dropout:
            weights = nn.functional.dropout(weights, dropout)
        output = torch.bmm(weights, values[:, :seen]).view(batch, heads, -1, width)
        outputs.append(output.transpose(1, 2))
    return torch.cat(outputs, 1), None


def additive_mask(*args: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Tensor | None:
    """Return what is added to the scores, once per forward pass for all layers.

    transformers calls this function before the first layer, through `AttentionMaskInterface`.

    Args:
        args: as `transformers.masking_utils.sdpa_mask` takes them.
        dtype: of the token embeddings, which is the dtype of the mask.
        options: as `transformers.masking_utils.sdpa_mask` takes them.

    Returns:
        `(batch, 1, length, length)`, 0 where a query may see a key and `MASKED` elsewhere; None
        where `sdpa_mask` returns None because `is_causal` says everything.
    """
    mask = sdpa_mask(*args, dtype=dtype, **options)
    return None if mask is None else _additive(mask, dtype)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask, boolean or additive, as an additive one in the dtype of the queries.

    The dtype of an additive mask differs from the queries' under autocast.
    """
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    masked = max(MASKED, torch.finfo(dtype).min)  # float16 ends earlier
    return torch.where(mask, torch.zeros((), dtype=dtype, device=mask.device), masked)


def _bias_without_mask(query: Tensor, *, causal: bool) -> Tensor:
    """Return what is added to scores where transformers made no mask: `(1, 1, length, length)`."""
    shape = (1, 1, query.shape[2], query.shape[2])
    if not causal:
        return query.new_zeros(shape)
    return _additive(torch.ones(shape, dtype=torch.bool, device=query.device).tril(), query.dtype)


def _products_are_faster(query: Tensor, *, causal: bool) -> bool:
    """Return whether products are faster than the fused attention, and memory allows them."""
    length = query.shape[2]
    if query.dtype not in (torch.bfloat16, torch.float32):
        return False
    if length <= SHORT:
        return True
    if torch.is_grad_enabled():
        return length <= LONGEST_TRAINED
    return causal or query.dtype == torch.bfloat16


def _blocks(queries: Tensor, bias: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield blocks of queries and their rows of the bias."""
    if torch.compiler.is_compiling():  # one block, because one graph serves all lengths
        return iter([(queries, bias)])
    return zip(torch.split(queries, BLOCK, 2), torch.split(bias, BLOCK, 3), strict=True)


def _is_causal_by_block(mask: Tensor | None, length: int, *, causal: bool) -> bool:
    """Return whether no query may see a key that stands behind the query's block."""
    if mask is None:
        return causal
    if torch.compiler.is_compiling():  # a graph cannot depend on the values of a mask
        return False
    ends = range(BLOCK, length, BLOCK)
    return not any((mask[..., end - BLOCK : end, end:] > MASKED).any() for end in ends)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, additive_mask)
