"""Gradients, the optimiser's state and weights that DeepSpeed divides among processes (ZeRO).

With stages 1 and 2 each process has all weights. With stage 3 it has a part of each.
"""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from accelerate import Accelerator
from torch import Tensor
from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from llm2comp.errors import UserError
from llm2comp.training.distributed import world

_SETTINGS = {
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": ("zero_stage", ("1", "2", "3")),
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": ("deepspeed_config_file", ("none",)),
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": ("offload_optimizer_device", ("none",)),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": ("offload_param_device", ("none",)),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("gradient_accumulation_steps", ("1", "auto")),
    "ACCELERATE_GRADIENT_CLIPPING": ("gradient_clipping", ("auto",)),
}
"""For each variable that a launcher sets: the setting's name, and what it may be."""
BUCKET = 50_000_000
"""Gradients that are sent together, in number. DeepSpeed's ten times as many take 2 GB."""


def is_zero() -> bool:
    """Return whether the launcher asks for DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def divides_weights() -> bool:
    """Return whether the launcher asks for DeepSpeed with ZeRO-3."""
    return is_zero() and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"


def require_usable() -> None:
    """Check that DeepSpeed is there and that accelerate's configuration asks for what is tested.

    Raises:
        UserError: if not.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError("DeepSpeed is not installed: pip install 'llm2comp[deepspeed]'")
    if world.size() == 1:
        raise UserError("DeepSpeed divides a model among processes, and there is one; leave it out")
    for variable, (name, allowed) in _SETTINGS.items():
        value = os.environ.get(variable, allowed[0])
        if value not in allowed:
            raise UserError(
                f"{name}={value} of accelerate's configuration is not supported with DeepSpeed; "
                f"set {name}: {' or '.join(allowed)}"
            )


def configure(args: TrainingArguments) -> None:
    """Let DeepSpeed train as the recipe says: in the precision of each weight, under autocast.

    With `bf16` DeepSpeed would cast what trains to bfloat16, and that is what would be saved.
    """
    config = cast(Any, args.deepspeed_plugin).deepspeed_config
    config["bf16"] = {}
    config["gradient_clipping"] = "auto"  # max_grad_norm of the recipe
    config["zero_optimization"]["reduce_bucket_size"] = BUCKET
    if args.bf16:
        config["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],  # gradients are sent in float32
        }


def check_before_update(accelerator: Accelerator, check: Callable[[Tensor], None]) -> None:
    """Let DeepSpeed wait with its update until the gradient has been checked.

    accelerate would update the weights within the backward pass.

    Args:
        accelerator: of a Trainer.
        check: called with the loss, after the backward pass. It may raise.
    """

    def backward(loss: Tensor, **_: Any) -> None:
        engine = cast(Any, accelerator).deepspeed_engine_wrapped.engine
        engine.set_gradient_accumulation_boundary(is_boundary=True)
        engine.backward(loss)
        check(loss.detach())
        engine.step()

    accelerator.backward = backward
    # Otherwise transformers would divide the weights of all models that are loaded later.
    unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]


def gradient(parameter: Tensor) -> Tensor | None:
    """Return the whole gradient of a parameter after a backward pass. All processes must ask."""
    from deepspeed.utils import safe_get_full_grad

    return cast(Tensor | None, safe_get_full_grad(parameter))


def has_part_of(parameter: Tensor) -> bool:
    """Return whether this process has a part of a parameter, because ZeRO-3 divides it."""
    return hasattr(parameter, "ds_tensor")


def own_part(parameter: Tensor) -> Tensor:
    """Return the part of a parameter that this process has, which may be all of it."""
    return cast(Tensor, getattr(parameter, "ds_tensor", parameter))


def whole(parameter: Tensor) -> Tensor:
    """Return a copy of a divided parameter with all parts. All processes must ask for it."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def save(engine: Any, folder: str) -> None:
    """Write what trains, and the optimiser's state, of which each process has a part."""
    engine.save_checkpoint(folder, exclude_frozen_parameters=True)


def division(processes: int, *, divides_weights: bool) -> str:
    """Return how a checkpoint is divided, for a message."""
    return f"with {'ZeRO-3' if divides_weights else 'ZeRO-1 or -2'} and {processes} processes"


def division_of(checkpoint: Path) -> str | None:
    """Return how a checkpoint is divided; `None` if it was not written by DeepSpeed."""
    parts = len(list(checkpoint.glob("global_step*/*_optim_states.pt")))
    weights = list(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt"))
    return division(parts, divides_weights=bool(weights)) if parts else None


def load(engine: Any, checkpoint: str) -> None:
    """Load what `save` wrote with as many processes and the same stage of ZeRO."""
    engine.load_checkpoint(checkpoint, load_module_strict=False)
