"""Linear layers whose float32 products oneDNN computes, on processors where MKL is slow.

PyTorch multiplies float32 matrices by Intel's MKL. On AMD's processors oneDNN, which PyTorch has
too, takes faster kernels (docs/performance.md).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from llm2comp.utils.hardware import mkl_is_slow


class OneDnnLinear(nn.Linear):
    """A linear layer with the parameters, gradients and precision of the stock layer."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the stock layer's name)
        """Return `x W' + b`, `(..., outputs)`, for `x` of `(..., inputs)`."""
        if (
            not input.dtype == self.weight.dtype == torch.float32
            or input.device.type != "cpu"
            or input.dim() < 2
            or torch.is_autocast_enabled("cpu")
            or torch.compiler.is_compiling()  # compilers and exporters know only the stock layer
        ):
            return linear(input, self.weight, self.bias)
        if not torch.is_grad_enabled():
            return _product(input, self.weight, self.bias)
        product: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias
        )
        return product


def use_onednn(model: nn.Module) -> None:
    """Let a model's float32 linear layers multiply by oneDNN, if that is faster here.

    Args:
        model: changed in place; its parameters stay the same.
    """
    # The operator is not part of PyTorch's public interface, so a later version may not have it.
    if mkl_is_slow() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        for module in model.modules():
            if type(module) is nn.Linear and module.weight.dtype == torch.float32:
                module.__class__ = OneDnnLinear


def transpose_in_memory(model: nn.Module) -> None:
    """Store the weights of a model's `OneDnnLinear` layers by column, in which they are read.

    It makes encoding faster, and single short texts most. It does not help training, because the
    backward pass reads weights by row.

    Args:
        model: changed in place; its parameters keep their shapes and values.
    """
    for module in model.modules():
        if isinstance(module, OneDnnLinear) and module.weight.device.type == "cpu":
            module.weight.data = module.weight.data.t().contiguous().t()


class _Product(torch.autograd.Function):
    """The product, with its gradient, which PyTorch's operator does not have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            _product(gradient, weight.t(), None) if for_x else None,
            rows.t() @ x.flatten(0, -2) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
