"""What all stages share: small checkpoints, and resuming a run that was stopped."""

import functools
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any, cast

import torch
from accelerate.utils import save_fsdp_optimizer, set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from llm2comp.errors import UserError
from llm2comp.model.lora import trainable_parameters
from llm2comp.model.lora_targets import Adapted
from llm2comp.recipe import Pretext, StageBase
from llm2comp.training.checkpoints import HEALTH, LOG_MARK, last_checkpoint, step_of
from llm2comp.training.distributed import world, zero
from llm2comp.training.distributed.launch import require_equal_parts
from llm2comp.training.distributed.preemption import Preemption
from llm2comp.training.distributed.sharded import (
    copy_to,
    divide_by_blocks,
    is_divided,
    is_fsdp,
    keep_precision,
    make_trained_whole,
    require_same_division,
    whole,
)
from llm2comp.training.distributed.shares import read_whole_batches
from llm2comp.training.guarded_trainer import MEMORY_EMBEDDINGS, GuardedTrainer, beginnings
from llm2comp.training.monitoring import divergence
from llm2comp.training.monitoring.divergence import DivergenceError
from llm2comp.training.monitoring.health import HealthWatch
from llm2comp.training.monitoring.progress import RunProgress, TokenCounter
from llm2comp.training.monitoring.run_log import RunLog
from llm2comp.training.monitoring.trackers import finish_trackers
from llm2comp.training.stage_context import StageContext
from llm2comp.utils.checksums import write_checksums

WEIGHTS = "trainable.safetensors"
"""File of a checkpoint with the parameters that train."""


class AdapterCheckpoints(GuardedTrainer):
    """A Trainer whose checkpoints hold what trains and the trainer's state, no frozen weights.

    Attributes:
        run_log: the log of the run, whose place goes into each checkpoint.
    """

    run_log: RunLog

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what trains, and the place in the log. All processes must take part."""
        folder = Path(output_dir or str(self.args.output_dir))
        tensors = trained_tensors(cast(nn.Module, self.model))
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_trained(tensors, folder)
            (folder / LOG_MARK).write_text(json.dumps(self.run_log.mark()), encoding="utf-8")
            if self.health is not None:
                (folder / HEALTH).write_text(json.dumps(self.health.state()), encoding="utf-8")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_divided():
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # The Trainer would write the frozen weights too.
        if zero.is_zero():
            zero.save(self.model_wrapped, output_dir)
        else:
            plugin = self.accelerator.state.fsdp_plugin
            save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            state = cast(Any, self.lr_scheduler).state_dict()
            torch.save(state, Path(output_dir, SCHEDULER_NAME))

    def create_accelerator_and_postprocess(self) -> None:
        """Prepare for several processes."""
        if zero.is_zero():
            zero.configure(self.args)
        super().create_accelerator_and_postprocess()
        if world.size() > 1:
            read_whole_batches(self.accelerator)
        if zero.is_zero():
            zero.check_before_update(self.accelerator, self.check_gradient)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        prepare: Any = super()._prepare_for_training
        if not zero.is_zero() or resume_from_checkpoint is None:
            return prepare(max_steps, train_dataloader, resume_from_checkpoint)
        # The Trainer would ask DeepSpeed for the frozen weights too.
        prepared = prepare(max_steps, train_dataloader, None)
        zero.load(self.model_wrapped, resume_from_checkpoint)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        world.wait()  # the state of the Trainer, which comes next, says that all of them are there

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        super()._save_checkpoint(*arguments, **options)
        folder = Path(str(self.args.output_dir), f"checkpoint-{self.state.global_step}")
        world.from_main(lambda: write_checksums(folder))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        self.restore(Path(resume_from_checkpoint))

    def restore(self, checkpoint: Path) -> None:
        """Take the weights of a checkpoint."""
        load_trained(cast(nn.Module, self.model), checkpoint)


class PretextTrainer(AdapterCheckpoints):
    """Weighs each batch by its passages, because batches by length differ in their number.

    An objective's loss is a mean over the batch. With the weight, every passage counts the same,
    whatever batch it is in (paper: the mean over samples) and whatever process reads it.

    Args:
        stage: stage 1.
        tokenizer: of the passages.
        **arguments: as the Trainer takes them.
    """

    def __init__(
        self, *, stage: Pretext, tokenizer: PreTrainedTokenizerBase, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.stage = stage
        self.tokenizer = tokenizer
        self.weights: list[float] = []

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return AdamW with the learning rates of the stage."""
        if self.optimizer is None:
            trained = trainable_parameters(model or cast(nn.Module, self.model))
            groups = parameter_groups(trained.items(), self.stage)
            self.optimizer = torch.optim.AdamW(groups, weight_decay=self.stage.weight_decay)
        return self.optimizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any
    ) -> Tensor:
        """Compute the gradient of a batch with its weight."""
        self.batch_weight = self._weight(inputs)
        self.weights.append(self.batch_weight)
        return super().training_step(model, inputs, *args, **options)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any
    ) -> Any:
        """Return the mean loss of a batch, times its passages over the average of all batches."""
        loss: Any = super().compute_loss(model, inputs, *args, **options)
        share = inputs["batch"].share
        if share is not None:  # the Trainer takes the mean over the processes
            loss = loss * (share.rows * world.size() / share.total)
        return loss * self._weight(inputs)

    def _weight(self, inputs: dict[str, Any]) -> float:
        batch = inputs["batch"]
        rows = batch.share.total if batch.share else len(batch.input_ids)
        return rows / self.stage.batch_size

    def beginnings(self) -> list[str]:
        """Return how the passages of the last batch begin."""
        batch = self.batch.get("batch")
        if batch is None:
            return []
        return beginnings(batch.passage_ids, batch.passage_mask, self.tokenizer)

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """Log the mean over the passages since the last log, where the Trainer divides by steps."""
        if "loss" in logs:
            logs["loss"] /= mean(self.weights)
            self.weights.clear()
        super().log(logs, *args, **options)


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a model that train, whole and in main memory, by name."""
    parameters = trainable_parameters(model)
    return {name: whole(p).detach().cpu().contiguous() for name, p in parameters.items()}


def save_trained(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write what `trained_tensors` returned."""
    save_file(tensors, folder / WEIGHTS)


def load_trained(model: nn.Module, folder: Path) -> None:
    """Load what `save_trained` wrote into a model of the same kind."""
    parameters = dict(model.named_parameters())
    for name, tensor in load_file(folder / WEIGHTS).items():
        copy_to(parameters[name], tensor)


def run_training(
    trainer: AdapterCheckpoints, context: StageContext[StageBase], counter: TokenCounter
) -> None:
    """Train a stage, from its last whole checkpoint if it has one.

    Args:
        trainer: trains the stage's model.
        context: the stage.
        counter: counts the tokens that the model reads, for the log.

    Raises:
        UserError: if a loss, a gradient, a weight or a held-out measurement is not finite.
    """
    for stock_output in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(stock_output)
    stage, log = context.stage, context.log
    progress = RunProgress(stage.stage, log, counter)
    trainer.add_callback(progress)
    trainer.health = HealthWatch(stage.stage, log)
    trainer.run_log = log
    preemption = Preemption()
    trainer.add_callback(preemption)
    require_equal_parts(cast(nn.Module, trainer.model))
    checkpoint = world.from_main(lambda: _checkpoint_to_continue(context.workdir))
    if checkpoint is not None and (checkpoint / HEALTH).exists():  # older versions wrote none
        trainer.health.restore(json.loads((checkpoint / HEALTH).read_text(encoding="utf-8")))
    if is_fsdp():
        keep_precision(trainer.accelerator, cast(nn.Module, trainer.model))
        divide_by_blocks(trainer.accelerator, cast(nn.Module, trainer.model))
    if world.size() > 1:
        set_seed(context.recipe.seed, device_specific=True)  # each process has other dropout
    try:
        with preemption.puts_off():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        make_trained_whole(cast(nn.Module, trainer.model))
    except DivergenceError as error:
        progress.bar.stop()
        stop = functools.partial(
            divergence.stop,
            error,
            context,
            step=trainer.step,
            good_step=trainer.good_step,
            resumed_step=step_of(checkpoint) if checkpoint else 0,
            rates=trainer.rates,
            rows=world.listed(trainer.beginnings()),
        )
        raise world.from_main(stop) from error
    finally:
        progress.bar.stop()  # because a round of mining ends without the end of a training
        trainer.accelerator.free_memory()
    finish_trackers(context.recipe.report_to)


def _checkpoint_to_continue(workdir: Path) -> Path | None:
    """Return the checkpoint that training goes on from, if there is one.

    Raises:
        UserError: if FSDP or DeepSpeed divided it otherwise.
    """
    checkpoint = last_checkpoint(workdir)
    if checkpoint is not None:
        require_same_division(checkpoint)
    return checkpoint


def log_trained(context: StageContext[StageBase], adapted: Adapted | None) -> None:
    """Show which layers the stage's LoRA adapts, and write it to the log; None is all weights."""
    if adapted is None:
        context.log.console.print("all weights train, without LoRA")
        return
    context.log.console.print(str(adapted))
    context.log.write_once(stage=context.stage.stage, lora=adapted.record)


def training_arguments(context: StageContext[StageBase], dtype: torch.dtype) -> dict[str, Any]:
    """Return the keyword arguments that all stages pass to their TrainingArguments."""
    stage, recipe = context.stage, context.recipe
    during = recipe.evaluation.during
    return {
        "output_dir": str(context.workdir),
        "run_name": f"{recipe.name} {stage.stage}",
        "max_steps": stage.steps,
        "per_device_train_batch_size": stage.batch_size,
        "learning_rate": stage.learning_rate,
        "warmup_steps": stage.warmup_steps,
        "lr_scheduler_type": stage.scheduler,
        "weight_decay": stage.weight_decay,
        "max_grad_norm": stage.max_grad_norm,
        "bf16": dtype == torch.bfloat16,
        "use_cpu": not torch.cuda.is_available(),
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "save_strategy": "steps",
        "save_steps": stage.save_steps,
        # One of them may be half-written when the run is killed; one may be the best.
        "save_total_limit": 3 if during is not None and during.keep_best else 2,
        "logging_steps": stage.log_steps,
        "logging_nan_inf_filter": False,  # it hides losses that are not finite
        "report_to": recipe.report_to,
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        # With a LoRA every parameter has a part in every step.
        "ddp_find_unused_parameters": stage.lora is None,
        "ddp_broadcast_buffers": False,  # mini-batches may differ in number among processes
    }


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], stage: StageBase
) -> list[dict[str, Any]]:
    """Return the optimiser's parameter groups: memory embeddings have a learning rate of their own.

    Args:
        parameters: what trains, with its name.
        stage: `memory_learning_rate`, if it is set, is the rate of the memory embeddings.
    """
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in parameters:
        groups[MEMORY_EMBEDDINGS in name].append(parameter)
    rates = {False: stage.learning_rate, True: stage.memory_learning_rate or stage.learning_rate}
    return [
        {"params": groups[is_memory], "lr": rates[is_memory]}
        for is_memory in groups
        if groups[is_memory]
    ]


def compile_blocks(body: PreTrainedModel) -> None:
    """Compile the blocks of a model with `torch.compile`, in place.

    All blocks share one compiled program, and each way to call them adds one more. The whole model
    would be compiled four times instead, for the adapter on and off and for gradients on and off,
    each time with all of its thirty blocks.

    Raises:
        UserError: if there is no C++ compiler, which a processor needs.
    """
    compiler = os.environ.get("CXX", "g++")
    if body.device.type == "cpu" and not shutil.which(compiler):
        raise UserError(f"compile: true needs a C++ compiler, and there is no {compiler}")
    for module in body.modules():
        if type(module).__name__ in (body._no_split_modules or ()):
            module.compile()
