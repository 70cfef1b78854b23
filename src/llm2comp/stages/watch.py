"""Watch stage 1 as it trains: what is held out, and when the attention opens."""

import logging
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm2comp import recipe
from llm2comp.compressor import Compressor
from llm2comp.objectives import Batch, Compression, Objective
from llm2comp.stages import held_out
from llm2comp.stages.collapse import report, warn_of_collapse
from llm2comp.stages.measuring import Measuring
from llm2comp.stages.run_log import RunLog

logger = logging.getLogger("llm2comp")

FLAT_GAP = 0.1
"""A gap below this, in nats a token, says that memory has become a generic prefix."""


class AttentionSwitch(TrainerCallback):
    """Opens a causal encoder's attention at ``bidirectional_from_step``."""

    def __init__(self, compressor: Compressor, opens: int) -> None:
        self.compressor = compressor
        self.opens = opens

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Set the attention of the step at which training begins or goes on."""
        self.compressor.causal = state.global_step < self.opens

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Open the attention when its step has come."""
        self.compressor.causal = state.global_step < self.opens


class HeldOutWatch(Measuring):
    """Measures the objective and the embeddings on held-out text.

    An objective that compresses is judged by the gap, any other by its loss.
    There is one warning if the gap stays flat, and one if the embeddings collapse.
    """

    def __init__(
        self,
        compressor: Compressor,
        objective: Objective,
        batches: list[Batch],
        stage: recipe.Pretext,
        dtype: torch.dtype,
        log: RunLog,
    ) -> None:
        self.compressor = compressor
        self.objective = objective
        device = compressor.device
        self.batches = [batch.to(device) for batch in batches]
        self.autocast = torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16)
        self.every = stage.eval_steps
        self.log_file = log
        self.flat = 0
        self.warned = False

    def measure(self, step: int) -> None:
        """Measure, log and warn."""
        with self.autocast:
            if isinstance(self.objective, Compression):
                text_cosine = self._measure_memory(self.objective, step)
            else:
                values = held_out.measure_loss(self.compressor, self.objective, self.batches)
                report(self.log_file, "pretext", step, values)
                text_cosine = values["text_cosine"]
        if step and not self.warned:
            self.warned = warn_of_collapse("pretext", step, text_cosine)

    def _measure_memory(self, objective: Compression, step: int) -> float:
        """Measure and log the gap and all beside it, and return the cosine between texts."""
        result = held_out.measure(self.compressor, objective, self.batches)
        self.log_file.write(stage="pretext", step=step, held_out=result.as_dict())
        self.log_file.console.print(
            f"[dim]step {step}: held-out loss {result.own:.3f}, with another text's "
            f"memory {result.other:.3f}, gap {result.gap:.3f}; with the last k tokens instead "
            f"{result.last_tokens:.3f}; cosine between memory tokens "
            f"{result.token_cosine:.2f}, between texts {result.text_cosine:.2f}; effective "
            f"dimension {result.rankme:.1f}"
        )
        self._warn_of_a_flat_gap(step, result.gap)
        return result.text_cosine

    def _warn_of_a_flat_gap(self, step: int, gap: float) -> None:
        self.flat = self.flat + 1 if step and gap < FLAT_GAP else 0
        if self.flat == 3:
            logger.warning(
                "memory carries little of its text (gap %.3f nats a token at step %d): compression "
                "has not ignited; try causal attention, a fixed split and a higher learning rate, "
                "see docs/ignition.md",
                gap,
                step,
            )
