"""When a stage is measured: before its first step, every N steps, and at its end."""

from abc import ABC, abstractmethod

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Measuring(TrainerCallback, ABC):
    """A callback that measures on the main process.

    Attributes:
        every: steps between measurements.
    """

    every: int

    @abstractmethod
    def measure(self, step: int) -> None:
        """Measure after this many steps."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Measure what the stage starts from."""
        if state.global_step == 0 and state.is_world_process_zero:
            self.measure(0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Measure every N steps and at the end."""
        due = state.global_step % self.every == 0 or state.global_step == state.max_steps
        if due and state.is_world_process_zero:
            self.measure(state.global_step)
