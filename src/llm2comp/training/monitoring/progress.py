"""The progress bar of a stage, and the lines of its losses in the log."""

from time import perf_counter
from typing import Any

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm2comp.training.distributed import world
from llm2comp.training.monitoring.run_log import RunLog

READING = "reading"
"""The part of the loss that reading memory has (`supervised.reading`)."""
SCORE = "eval_score"
"""What the Trainer and the trackers call the mean score on development data."""


class TokenCounter:
    """Counts the tokens of the texts that a model is trained on.

    Attributes:
        tokens: the count; whoever reads it may set it back to 0.
    """

    def __init__(self) -> None:
        self.tokens = 0

    def add(self, attention_mask: Tensor) -> None:
        """Count the tokens of a batch.

        Batches that are read without gradients are left out, because GradCache reads each text
        twice, the first time without gradients.

        Args:
            attention_mask: `(batch, length)`, 1 where a token is.
        """
        if torch.is_grad_enabled():
            self.tokens += int(attention_mask.sum())


class RunProgress(TrainerCallback):
    """Shows a bar with steps, rate, loss and time left, and writes losses to the log.

    The loss is the mean over the steps since the last line. The norm of the gradient is that of the
    last step, before it is clipped. If there are scores on development data, the bar shows the last
    of them instead of the norm.

    Args:
        label: name of the stage.
        log: where losses are written.
        counter: counts the tokens that the model reads in this process; the log has those of all.
    """

    def __init__(self, label: str, log: RunLog, counter: TokenCounter) -> None:
        self.label = label
        self.run_log = log
        self.counter = counter
        self.since = 0.0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=log.console,
        )
        self.task: TaskID | None = None
        self.score: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the bar."""
        if state.is_world_process_zero:
            self.bar.start()
            self.since = perf_counter()
            self.task = self.bar.add_task(
                self.label, total=state.max_steps, completed=state.global_step, rate="", loss=""
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Advance the bar."""
        if self.task is not None:
            speed = self.bar.tasks[0].speed
            rate = f"{1 / speed:.2f} s/step" if speed else ""
            self.bar.update(self.task, completed=state.global_step, rate=rate)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Show the loss, and the last score or the norm of the gradient; write loss and norm."""
        if logs and SCORE in logs:
            self.score = logs[SCORE]
        if not logs or "loss" not in logs:
            return
        tokens, self.counter.tokens = world.total_count(self.counter.tokens), 0
        if self.task is None:
            return
        norm = logs.get("grad_norm")
        beside = "" if norm is None else f", gradient {norm:.2g}"
        if self.score is not None:  # a bar of 80 columns has no room for both
            beside = f", score {self.score:.1f}"
        self.bar.update(self.task, loss=f"loss {logs['loss']:.3f}{beside}")
        now = perf_counter()
        rate, self.since = tokens / (now - self.since), now
        # Its part of the loss, if the stage trains memory to be read.
        reading = {READING: logs[READING]} if READING in logs else {}
        self.run_log.write(
            stage=self.label,
            step=state.global_step,
            loss=logs["loss"],
            **reading,
            grad_norm=norm,
            learning_rate=logs.get("learning_rate"),
            tokens_per_second=round(rate, 1),
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Stop the bar."""
        self.bar.stop()
