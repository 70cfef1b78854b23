"""Weights that FSDP divides among the processes, so that a large backbone fits."""

import os

import torch
from accelerate import Accelerator
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from llm2comp.training.distributed import world


def is_fsdp() -> bool:
    """Return whether the launcher asks for FSDP."""
    return world.size() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def divide_by_blocks(accelerator: Accelerator, model: nn.Module) -> None:
    """Let FSDP divide each block of the backbone by itself, so that one is whole at a time."""
    body = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = list(body._no_split_modules or ())
    if isinstance(model, SentenceTransformer):
        # accelerate looks for the last norm here. It would take `Normalize`, which has no weights.
        vars(model)["base_model_prefix"] = "0"


def divide_again(model: nn.Module) -> None:
    """Divide the weights that a pass without a backward pass has left whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with what all processes have of it. All must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copy_to(parameter: Tensor, tensor: Tensor) -> None:
    """Copy a whole tensor to a parameter, which may be divided."""
    if isinstance(parameter, DTensor):
        here = tensor.to(parameter.device, parameter.dtype)
        tensor = distribute_tensor(here, parameter.device_mesh, parameter.placements)
    parameter.copy_(tensor)


def make_trained_whole(model: nn.Module) -> None:
    """Put whole parameters in the place of divided ones that were trained, so that they are saved.

    The model cannot be trained further.
    """
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad and isinstance(parameter, DTensor):
                setattr(module, name, nn.Parameter(parameter.full_tensor()))
