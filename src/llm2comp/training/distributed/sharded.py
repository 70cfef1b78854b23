"""A model that FSDP or DeepSpeed divides among the processes, so that a large backbone fits."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import get_total_norm
from transformers import PreTrainedModel
from transformers.trainer import OPTIMIZER_NAME

from llm2comp.errors import UserError
from llm2comp.training.distributed import world, zero


def is_fsdp() -> bool:
    """Return whether the launcher asks for FSDP."""
    return world.size() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def is_divided() -> bool:
    """Return whether FSDP or DeepSpeed divides the model, or what belongs to its training."""
    return is_fsdp() or zero.is_zero()


def some_process_has_all() -> bool:
    """Return whether there is a process that has all weights. Otherwise all have parts of them."""
    return not is_fsdp() and not zero.divides_weights()


def divider() -> str:
    """Return the name of what divides the model, for a message."""
    return "DeepSpeed" if zero.is_zero() else "FSDP"


def require_same_division(checkpoint: Path) -> None:
    """Check that a checkpoint has the optimiser's state as this run divides it.

    The Trainer would leave out what it does not find, without a word.

    Raises:
        UserError: if it was divided otherwise.
    """
    here = "without FSDP and DeepSpeed"
    if zero.is_zero():
        here = zero.division(world.size(), divides_weights=zero.divides_weights())
    elif is_fsdp():
        here = "with FSDP"
    there = zero.division_of(checkpoint)
    if there is None:
        is_whole = (checkpoint / OPTIMIZER_NAME).exists()
        there = "without FSDP and DeepSpeed" if is_whole else "with FSDP"
    if there != here:
        raise UserError(
            f"{checkpoint} was written {there}, and this run trains {here}; continue {there}, or "
            f"remove {checkpoint.parent} to train the stage again"
        )


def divide_by_blocks(accelerator: Accelerator, model: nn.Module) -> None:
    """Let FSDP divide each block of the backbone by itself, so that one is whole at a time."""
    body = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = list(body._no_split_modules or ())
    if isinstance(model, SentenceTransformer):
        # accelerate looks for the last norm here. It would take `Normalize`, which has no weights.
        vars(model)["base_model_prefix"] = "0"


def keep_precision(accelerator: Accelerator, model: nn.Module) -> None:
    """Let FSDP train as the recipe says: in the precision of each weight, under autocast.

    With `bf16` accelerate would let FSDP cast what trains to bfloat16 in each pass, and also its
    gradient, which is added up over the processes, and the loss of stage 1.
    """
    accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
    # With a cache a process would keep its copies in bfloat16 until the end of the pass.
    accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
    # accelerate uses autocast with all but FSDP. This does nothing else to the model.
    accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)


def divide_again(model: nn.Module) -> None:
    """Divide the weights that a pass without a backward pass has left whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with what all processes have of it. All must ask for it."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    return zero.whole(tensor) if zero.has_part_of(tensor) else tensor


def gradient(parameter: Tensor) -> Tensor | None:
    """Return the gradient of a parameter, if it has one. All processes must ask for it."""
    return zero.gradient(parameter) if zero.is_zero() else parameter.grad


def are_finite(parameters: Iterable[Tensor]) -> bool:
    """Return whether parameters are finite in all processes."""
    parts = [zero.own_part(p).detach() for p in parameters]
    # The largest number and not the sum of squares, which overflows far below it.
    finite = bool(whole(get_total_norm(parts, float("inf"))).isfinite())
    return world.total_count(not finite) == 0 if zero.divides_weights() else finite


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
            if parameter.requires_grad and (there := whole(parameter)) is not parameter:
                setattr(module, name, nn.Parameter(there.detach()))
