"""Compute in float32 with weights in half precision, of which one at a time is widened."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

HALVES = (torch.bfloat16, torch.float16)


class InFloat32(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes a model compute in a block what it would compute if it was loaded in float32.

    A copy of the whole model in float32 would take twice the memory of the model. Here each
    operation widens what it reads, so one weight at a time has a copy.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is torch.ops.aten.embedding.default:  # it reads few rows of a large table
            return _widened(func(*args, **options))
        if func.is_view:  # a copy in its place fails; what reads the view widens it
            return func(*tree_map(_wide_dtype, args), **tree_map(_wide_dtype, options))
        return func(*tree_map(_widened, args), **tree_map(_widened, options))


def _widened(value: Any) -> Any:
    """Return a tensor, or a dtype, in float32 if it is in half precision."""
    if isinstance(value, Tensor) and value.dtype in HALVES:
        return value.float()
    return _wide_dtype(value)


def _wide_dtype(value: Any) -> Any:
    """Return float32 for the dtype of half precision, and anything else as it is."""
    return torch.float32 if isinstance(value, torch.dtype) and value in HALVES else value
