"""What all stages share: checkpoints of the adapter alone, progress, and going on after a kill."""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter
from typing import Any, cast

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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from llm2comp.errors import UserError
from llm2comp.model.lora import trainable_parameters
from llm2comp.recipe import StageBase
from llm2comp.training.run_log import RunLog
from llm2comp.training.stage_context import StageContext

WEIGHTS = "trainable.safetensors"


class AdapterCheckpoints(Trainer):
    """A Trainer whose checkpoints hold LoRA, memory rows and trainer state, no frozen weights."""

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            n: p.detach().cpu()
            for n, p in trainable_parameters(cast(nn.Module, self.model)).items()
        }
        save_file(tensors, folder / WEIGHTS)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        saved = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        with torch.no_grad():
            for name, parameter in trainable_parameters(
                cast(nn.Module, model or self.model)
            ).items():
                parameter.copy_(saved[name])


def training_arguments(
    stage: StageBase, work: Path, seed: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Return the keyword arguments that a stage hands to its TrainingArguments."""
    return {
        "output_dir": str(work),
        "max_steps": stage.steps,
        "per_device_train_batch_size": stage.batch_size,
        "learning_rate": stage.learning_rate,
        "warmup_steps": stage.warmup_steps,
        "lr_scheduler_type": stage.scheduler,
        "weight_decay": stage.weight_decay,
        "max_grad_norm": stage.max_grad_norm,
        "bf16": dtype == torch.bfloat16,
        "use_cpu": not torch.cuda.is_available(),
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_steps": stage.save_steps,
        "save_total_limit": 2,  # one may be half-written when the run is killed
        "logging_steps": stage.log_steps,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


class TokenCounter:
    """Counts the tokens of the texts that a model is trained on."""

    def __init__(self) -> None:
        self.tokens = 0

    def add(self, attention_mask: Tensor) -> None:
        """Count a batch, unless it is read without gradients: GradCache reads each text twice."""
        if torch.is_grad_enabled():
            self.tokens += int(attention_mask.sum())


def run_training(trainer: Trainer, context: StageContext[StageBase], counter: TokenCounter) -> None:
    """Train, from the last whole checkpoint if any."""
    for shown in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(shown)
    trainer.add_callback(RunProgress(context.stage.stage, context.log, counter))
    checkpoint = last_checkpoint(context.workdir)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def last_checkpoint(work: Path) -> Path | None:
    """Return the newest checkpoint that was written whole.

    The Trainer writes the state last, so a checkpoint without a readable one
    was cut off.
    """
    whole = [folder for folder in work.glob("checkpoint-*") if _is_whole(folder)]
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return True


class RunProgress(TrainerCallback):
    """A progress bar with steps, rate, loss and time left; losses also go to the log."""

    def __init__(self, label: str, log: RunLog, counter: TokenCounter) -> None:
        self.label = label
        self.log_file = log
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
        """Show and record the loss."""
        if self.task is None or not logs or "loss" not in logs:
            return
        self.bar.update(self.task, loss=f"loss {logs['loss']:.3f}")
        now = perf_counter()
        rate = self.counter.tokens / (now - self.since)
        self.counter.tokens, self.since = 0, now
        self.log_file.write(
            stage=self.label,
            step=state.global_step,
            loss=logs["loss"],
            learning_rate=logs.get("learning_rate"),
            tokens_per_second=round(rate, 1),
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Stop the bar."""
        self.bar.stop()


def compile_blocks(body: PreTrainedModel) -> None:
    """Compile a body's blocks, in place: one program for all, and one more for each of its uses.

    Not the whole model: with the adapter on and off, and with and without gradients, that would
    be compiled four times, thirty blocks each.

    Raises:
        UserError: if there is no compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if body.device.type == "cpu" and not shutil.which(compiler):
        raise UserError(f"compile: true needs a C++ compiler, and there is no {compiler}")
    for module in body.modules():
        if type(module).__name__ in (body._no_split_modules or ()):
            module.compile()


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], stage: StageBase
) -> list[dict[str, Any]]:
    """Group what trains, so that the memory rows can have their own rate."""
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in parameters:
        groups[MEMORY_EMBEDDINGS in name].append(parameter)
    rates = {False: stage.learning_rate, True: stage.memory_learning_rate or stage.learning_rate}
    return [{"params": groups[rows], "lr": rates[rows]} for rows in groups if groups[rows]]


MEMORY_EMBEDDINGS = "trainable_tokens_delta"
"""Part of the name that PEFT gives to the memory rows."""
