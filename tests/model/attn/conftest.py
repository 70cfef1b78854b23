"""Stand-ins for kernels that need a GPU: what they are told is what is computed here."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel, masking_utils
from transformers import modeling_flash_attention_utils as flash
from transformers.integrations import flex_attention as flex

from llm2comp.model import attention


@pytest.fixture
def flash_attention_2(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Put functions with the arguments of the package flash-attn in its place.

    transformers does the rest: it decides what the kernel is told, and takes padding out.

    Returns:
        For each call, whether the kernel was told that attention is causal.
    """
    told: list[bool] = []

    def fixed(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
    ) -> Tensor:
        assert window_size == (-1, -1)
        told.append(causal)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # heads before tokens
        options = {"is_causal": causal, "scale": softmax_scale, "enable_gqa": True}
        return scaled_dot_product_attention(q, k, v, None, dropout_p, **options).transpose(1, 2)

    def of_any_length(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
    ) -> Tensor:
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        texts = zip(cu_seqlens_q.tolist(), cu_seqlens_q.tolist()[1:], strict=False)
        options = (dropout_p, softmax_scale, causal, window_size)
        return torch.cat(
            [fixed(*(part[None, a:b] for part in (q, k, v)), *options)[0] for a, b in texts]
        )

    functions = (fixed, of_any_length, None, flash._pad_input, flash._unpad_input)
    monkeypatch.setattr(flash, "_lazy_imports", lambda *_, **__: functions)
    monkeypatch.setattr(flash, "_loaded_implementation", None)
    for name in (
        "_flash_fn",
        "_flash_varlen_fn",
        "_pad_fn",
        "_unpad_fn",
        "_process_flash_kwargs_fn",
    ):
        monkeypatch.setattr(flash, name, None)
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *_, **__: True)
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: True)
    return told


@pytest.fixture
def flex_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute flex attention as its mask says, with gradients, which a processor has not."""

    def dense(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        score_mod: Callable[..., Tensor],
        block_mask: masking_utils.BlockMask,
        scale: float,
        enable_gqa: bool,
        **_: object,
    ) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
        place = torch.meshgrid(*map(torch.arange, (*query.shape[:3], key.shape[2])), indexing="ij")
        scores = score_mod(query @ key.mT * scale, *place)
        allowed = block_mask.mask_mod(*place)
        return scores.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num() @ value

    monkeypatch.setattr(flex, "compile_friendly_flex_attention", dense)
    made = partial(masking_utils.create_block_mask, _compile=False)
    monkeypatch.setattr(
        masking_utils,
        "create_block_mask",
        lambda *args, _compile=True, **options: made(*args, **options),
    )
