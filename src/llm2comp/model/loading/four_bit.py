"""Frozen weights in 4 bits, on which a LoRA trains (QLoRA, arXiv 2305.14314).

Linear layers are stored as NF4 with double quantisation. A layer computes in the precision of
training, with weights that are made from the 4 bits each time. Embeddings, norms and the head stay
as they are.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llm2comp.errors import UserError

BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in 4 bits: itself, a byte for each 64 weights, and a float for each 256 of
these bytes."""


def require_installed() -> None:
    """Check that the package is there that stores weights in 4 bits.

    Raises:
        UserError: if it is not.
    """
    if find_spec("bitsandbytes") is None:
        raise UserError("backbone.load_in_4bit needs bitsandbytes: pip install 'llm2comp[qlora]'")


def options(dtype: torch.dtype) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` with which linear layers are loaded in 4 bits.

    Args:
        dtype: in which they compute.
    """
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config}


def keep_gradients(model: nn.Module) -> None:
    """Keep layers in 4 bits from packing their weights for inference.

    On a processor with native bfloat16 they would do so when they are called in evaluation mode.
    A packed layer passes no gradient to its input, in training mode either, and says nothing.

    Args:
        model: changed in place. One without such layers stays as it is.
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            vars(module)["support_avx512bf16_for_cpu"] = False


def bytes_of(model: PreTrainedModel, dtype: torch.dtype, *, load_in_4bit: bool) -> float:
    """Return the bytes of a model's weights.

    Args:
        model: not in 4 bits. Its weights are not read, so it may be on the device `meta`.
        dtype: of the weights that are not in 4 bits.
        load_in_4bit: whether the linear layers are loaded so.
    """
    numbers = sum(parameter.numel() for parameter in model.parameters())
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    small = sum(
        module.weight.numel()
        for module in model.modules()
        if load_in_4bit and isinstance(module, nn.Linear | Conv1D) and module is not head
    )
    return (numbers - small) * dtype.itemsize + small * BYTES
