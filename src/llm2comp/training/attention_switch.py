"""A callback that opens the attention at a given step of stage 1."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm2comp.model.compressor import Compressor


class AttentionSwitch(TrainerCallback):
    """Makes a causal encoder's attention bidirectional from a given step on.

    Args:
        compressor: the model in training.
        bidirectional_from_step: the first step with bidirectional attention.
    """

    def __init__(self, compressor: Compressor, bidirectional_from_step: int) -> None:
        self.compressor = compressor
        self.bidirectional_from_step = bidirectional_from_step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Set the attention of the step at which training starts or continues."""
        self.compressor.causal = state.global_step < self.bidirectional_from_step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Set the attention of the step that begins."""
        self.compressor.causal = state.global_step < self.bidirectional_from_step
