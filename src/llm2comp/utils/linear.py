"""Linear layers whose float32 products oneDNN computes, on processors where MKL is slow.

PyTorch multiplies float32 matrices by Intel's MKL. On AMD's processors oneDNN, which PyTorch has
too, takes faster kernels (docs/performance.md). Only encoding gains from it, so training keeps the
stock layers.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from llm2comp.utils.hardware import mkl_is_slow


class OneDnnLinear(nn.Linear):
    """A linear layer with the parameters and the precision of the stock layer."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the stock layer's name)
        """Return `x W' + b`, `(..., outputs)`, for `x` of `(..., inputs)`."""
        if (
            not input.dtype == self.weight.dtype == torch.float32
            or input.device.type != "cpu"
            or input.dim() < 2
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
            or torch.compiler.is_compiling()  # compilers and exporters know only the stock layer
        ):
            return linear(input, self.weight, self.bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            input, self.weight, self.bias, "none", [], ""
        )
        return product


def use_onednn(model: nn.Module) -> None:
    """Let a model's float32 linear layers multiply by oneDNN, if that is faster here.

    Weights are stored by column, because oneDNN reads them so. It matters most for single short
    texts.

    Args:
        model: changed in place; its parameters keep their shapes and values.
    """
    # The operator is not part of PyTorch's public interface, so a later version may not have it.
    if not mkl_is_slow() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return
    for module in model.modules():
        if type(module) is not nn.Linear:
            continue
        weight = module.weight
        if weight.dtype == torch.float32 and weight.is_cpu:
            module.__class__ = OneDnnLinear
            weight.data = weight.data.t().contiguous().t()
