"""A Trainer that stops at the first step whose loss, gradient or weights are not finite."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from llm2comp.model.lora import trainable_parameters
from llm2comp.training.distributed import world, zero
from llm2comp.training.distributed.sharded import are_finite, divide_again, gradient, whole
from llm2comp.training.monitoring.divergence import DivergenceError
from llm2comp.training.monitoring.health import HealthWatch
from llm2comp.utils.finite import first_not_finite

MEMORY_EMBEDDINGS = "trainable_tokens_delta"
"""Part of the name that PEFT gives to the memory embeddings."""
BEGINNING = 16
"""Tokens of a text that a message shows."""


class GuardedTrainer(Trainer, ABC):
    """Looks at every step before its update and after it.

    A loss or a gradient that is not finite stops the run before the optimiser's step, so that
    weights stay as they are. Weights that are not finite after a step stop it before a checkpoint
    is written. Each of both waits for the GPU once. The Trainer's `logging_nan_inf_filter`, which
    hides such losses and waits twice, must be off.

    Attributes:
        batch: what the last step was trained on.
        step: number of the last step, from 1.
        rates: learning rates of the last step.
        good_step: the last step with a gradient, or the step of the checkpoint that training goes
            on from. Later weights may be bad: if the final norm overflows, all states are zeros
            and so is the gradient.
        batch_weight: what the loss of the last step was multiplied by.
        health: warns of what is finite and wrong all the same.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.batch: dict[str, Any] = {}
        self.step = 0
        self.rates: list[float] = []
        self.good_step = 0
        self.batch_weight = 1.0
        self.health: HealthWatch | None = None
        self.add_callback(_AfterUpdate(self))

    @cached_property
    def parts(self) -> dict[str, list[nn.Parameter]]:
        """What trains: the LoRA and, if they train, the memory embeddings; or all weights."""
        parts: dict[str, list[nn.Parameter]] = {}
        for name, parameter in trainable_parameters(cast(nn.Module, self.model)).items():
            part = "LoRA" if "lora_" in name else "weights"
            part = "memory embeddings" if MEMORY_EMBEDDINGS in name else part
            parts.setdefault(part, []).append(parameter)
        return parts

    @property
    def _groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups of parameters."""
        return cast(Optimizer, self.optimizer).param_groups

    def _run_epoch(self, *args: Any, **options: Any) -> None:
        """Train an epoch, unless training goes on from the checkpoint after the last step.

        The Trainer compares the steps with their number only after it has trained one.
        """
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        run_epoch: Any = super()._run_epoch
        run_epoch(*args, **options)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any
    ) -> Tensor:
        """Compute the gradient of a batch, and check it. DeepSpeed also updates the weights.

        Raises:
            DivergenceError: if the loss or the gradient is not finite.
        """
        self.good_step = self.good_step or self.state.global_step
        self.step, self.batch = self.state.global_step + 1, dict(inputs)
        self.rates = list(dict.fromkeys(group["lr"] for group in self._groups))
        loss: Tensor = super().training_step(model, inputs, *args, **options)
        if not zero.is_zero():
            self.check_gradient(loss)
        return loss

    def check_gradient(self, loss: Tensor) -> None:
        """Check the loss and its gradient before the update.

        Raises:
            DivergenceError: if one of them is not finite.
        """
        norms = [_gradient_norm(parameters).to(loss.device) for parameters in self.parts.values()]
        # One copy from the GPU, for which the step waits.
        mean = world.total(loss.float()) / world.size()
        value, *gradients = torch.stack([mean, *norms]).tolist()
        if not math.isfinite(value):
            raise DivergenceError("the loss is not finite")
        if not all(map(math.isfinite, gradients)):
            raise DivergenceError("the norm of its gradient is not finite")
        if any(gradients):
            self.good_step = self.step
        if self.health is not None and self.is_world_process_zero():
            by_part = dict(zip(self.parts, gradients, strict=True))
            self.health.observe(self.step, value / self.batch_weight, by_part)

    @abstractmethod
    def beginnings(self) -> list[str]:
        """Return how the texts of the last batch begin, one for each row."""

    def loss_after_training(self) -> float:
        """Return the loss of the last batch with the weights after its update."""
        with torch.no_grad(), torch.random.fork_rng(), self.compute_loss_context_manager():
            inputs = self._prepare_inputs(dict(self.batch))
            loss: Any = self.compute_loss(self.model_wrapped, inputs)
            divide_again(cast(nn.Module, self.model))
            return float(world.total(loss) / world.size())

    def _save_checkpoint(self, *args: Any, **options: Any) -> None:
        """Write a checkpoint.

        Raises:
            DivergenceError: if the optimiser's moments are not finite.
        """
        moments = {
            name: value.to_local() if isinstance(value, DTensor) else value
            for number, state in enumerate(cast(Optimizer, self.optimizer).state.values())
            for name, value in ((f"{number}.{key}", value) for key, value in state.items())
            if isinstance(value, Tensor)
        }
        if world.total_count(first_not_finite(moments) is not None):
            raise DivergenceError("a moment of the optimiser is not finite")
        super()._save_checkpoint(*args, **options)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the state of a checkpoint, and keep the learning rates of the recipe.

        The state holds the rates that the recipe had when the checkpoint was written.
        """
        scheduler: Any = self.lr_scheduler
        peaks = list(scheduler.base_lrs)
        super()._load_optimizer_and_scheduler(checkpoint)
        steps = scheduler.last_epoch
        courses = zip(peaks, scheduler.lr_lambdas, strict=True)
        rates = [peak * course(steps) for peak, course in courses]
        scheduler.load_state_dict(
            scheduler.state_dict() | {"base_lrs": peaks, "_last_lr": list(rates)}
        )
        for group, peak, rate in zip(self._groups, peaks, rates, strict=True):
            group |= {"initial_lr": peak, "lr": rate}


class _AfterUpdate(TrainerCallback):
    """Checks the weights after each update, and what they compute after the last one."""

    def __init__(self, trainer: GuardedTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Check the weights."""
        if not are_finite(p for part in self.trainer.parts.values() for p in part):
            raise DivergenceError("a trained weight is not finite")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Check the loss after the last step, because no step comes that would show it."""
        is_last = state.global_step == state.max_steps
        if is_last and not math.isfinite(self.trainer.loss_after_training()):
            raise DivergenceError("the loss after the last step is not finite")


def _gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the norm of a gradient, a scalar in float32; 0 if there is no gradient."""
    gradients = [g.float() for p in parameters if (g := gradient(p)) is not None]
    return whole(get_total_norm(gradients))


def beginnings(ids: Tensor, mask: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the first words of texts.

    Args:
        ids: `(texts, length)`, padded on either side.
        mask: `(texts, length)`, nonzero where a token is.
        tokenizer: of the ids.
    """
    rows = [row[there.bool()][:BEGINNING] for row, there in zip(ids, mask, strict=True)]
    return [str(tokenizer.decode(row, skip_special_tokens=True)).strip() for row in rows]
