"""Scores on development data while a stage trains: which step is the best, and when to stop."""

import logging
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mteb.abstasks import AbsTask
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm2comp.errors import BrokenModelError, UserError
from llm2comp.evaluation import runner, suites
from llm2comp.evaluation.own_data.tasks import read_all
from llm2comp.evaluation.tasks.registry import DEVELOPMENT
from llm2comp.inference.precision import computing_in
from llm2comp.recipe import Pretext, Recipe, Stage, StageBase
from llm2comp.recipe_parts import During, Evaluation
from llm2comp.training.checkpoints import checkpoint_after
from llm2comp.training.distributed import world
from llm2comp.training.monitoring.divergence import DivergenceError
from llm2comp.training.monitoring.health import warn
from llm2comp.training.monitoring.progress import SCORE
from llm2comp.training.monitoring.run_log import RunLog, read_lines
from llm2comp.training.stage_context import StageContext
from llm2comp.training.trainer import AdapterCheckpoints

logger = logging.getLogger("llm2comp")

DEVELOPMENT_SPLITS = frozenset({"dev", "validation", "valid", "train"})
"""A task of mteb that scores another split is a test set."""


@dataclass(frozen=True)
class TaskScore:
    """The score of an encoder in training on one task.

    Attributes:
        task: name of the task.
        metric: name of its main metric.
        value: the metric in percent.
        over: what it is computed from.
    """

    task: str
    metric: str
    value: float
    over: str


class Development:
    """The tasks that an encoder in training is scored on.

    A file of one's own is read once, so that all scores are on the same rows.

    Args:
        evaluation: of a recipe.
        during: its `during`.

    Raises:
        UserError: if a task is unknown, or one's own data cannot be read.
    """

    def __init__(self, evaluation: Evaluation, during: During) -> None:
        self.during = during
        self.quick = evaluation.quick
        self.own = read_all(during.data or [])
        self.named()  # a wrong name is an error now

    def named(self) -> list[AbsTask]:
        """Return the named tasks, new ones, because tasks of mteb change while they run."""
        names = self.during.tasks
        return suites.tasks(names, quick=self.quick) if names else []

    def test_sets(self) -> list[str]:
        """Return the names of the tasks that are test sets."""
        named = [
            task.metadata.name
            for task in self.named()
            if task.metadata.name not in DEVELOPMENT
            and not set(task.metadata.eval_splits) <= DEVELOPMENT_SPLITS
        ]
        return [*named, *(str(data.path) for data in self.own if data.is_test_set)]

    def scores(self, model: SentenceTransformer) -> list[TaskScore]:
        """Score a model on each task.

        Raises:
            DivergenceError: if an embedding or a score is not finite.
        """
        tasks = [*self.named(), *(data.task() for data in self.own)]
        return [_task_score(model, task) for task in tasks]


def _task_score(model: SentenceTransformer, task: AbsTask) -> TaskScore:
    about = task.metadata
    try:
        value = runner.main_score(model, task)
    except BrokenModelError as error:
        raise DivergenceError(f"an embedding of {about.name} is not finite") from error
    if not math.isfinite(value):
        raise DivergenceError(f"the score on {about.name} is not finite")
    size = f"{getattr(task, 'samples', 0) or 'all'} samples"
    quick = ", quick" if getattr(task, "quick", False) else ""
    return TaskScore(about.name, about.main_score, round(value, 4), size + quick)


def check_during(recipe: Recipe, waiting: Sequence[Stage]) -> None:
    """Check `evaluation.during` before anything is trained.

    Args:
        recipe: the whole recipe.
        waiting: its stages that are not done. Nothing is read if none of them is scored.

    Raises:
        UserError: if it names what is not there.
    """
    during = recipe.evaluation.during
    if during is None:
        return
    if all(isinstance(stage, Pretext) for stage in recipe.stages):
        logger.warning("evaluation.during scores stages 2 and 3, and the recipe has neither")
    if all(isinstance(stage, Pretext) for stage in waiting):
        return
    development = Development(recipe.evaluation, during)
    for task in development.named():
        suites.load(task)  # data that is not there is an error now, not after stage 1
    for name in development.test_sets():
        logger.warning(
            "evaluation.during scores on %s, a test set: the step that is best there scores higher "
            "on it than on new texts; use STSBenchmarkDev or data of your own",
            name,
        )
    sources = [source.source for stage in recipe.stages for source in stage.data]
    trained = {Path(source).expanduser().resolve() for source in sources}
    for data in development.own:
        if data.path.resolve() in trained:
            logger.warning(
                "evaluation.during scores on %s, which is trained on too, so its score says "
                "nothing about new texts; hold some rows out in a file of their own",
                data.path,
            )


class DevelopmentWatch(TrainerCallback):
    """Scores UCL or SCL before the first step, every N steps and after the last step.

    It takes the best step as the result of the stage, and ends the stage early, if the recipe says
    so. The best score and its step are in the Trainer's state and so in its checkpoints. How many
    scores came after it follows from the number of the step. So a stage that is resumed goes on as
    if it had not been stopped.

    Args:
        trainer: trains the encoder.
        model: the encoder.
        development: what it is scored on.
        stage: name of the stage.
        max_seq_length: tokens that the saved encoder will read; training may read fewer.
        prompts: of the saved encoder.
        dtype: precision that the encoder computes in.
        log: where scores are written.

    Raises:
        UserError: if the best score decides, and the data has changed since the stage began.
    """

    def __init__(
        self,
        trainer: AdapterCheckpoints,
        model: SentenceTransformer,
        development: Development,
        *,
        stage: str,
        max_seq_length: int | None,
        prompts: dict[str, str],
        dtype: torch.dtype,
        log: RunLog,
    ) -> None:
        self.trainer = trainer
        self.model = model
        self.development = development
        self.during = development.during
        self.stage = stage
        self.max_seq_length = max_seq_length
        self.prompts = prompts
        self.dtype = dtype
        self.run_log = log
        self.kept_step = 0
        if self.during.keep_best or self.during.patience:
            world.from_main(self._require_same_data)

    @classmethod
    def of(
        cls,
        context: StageContext[StageBase],
        trainer: AdapterCheckpoints,
        model: SentenceTransformer,
        max_seq_length: int | None,
        prompts: dict[str, str],
        dtype: torch.dtype,
    ) -> "DevelopmentWatch | None":
        """Return a new callback of the trainer; None if the recipe has no `evaluation.during`."""
        evaluation = context.recipe.evaluation
        if evaluation.during is None:
            return None
        watch = cls(
            trainer,
            model,
            Development(evaluation, evaluation.during),
            stage=context.stage.stage,
            max_seq_length=max_seq_length,
            prompts=prompts,
            dtype=dtype,
            log=context.log,
        )
        trainer.add_callback(watch)
        return watch

    def _require_same_data(self) -> None:
        own = {data.name for data in self.development.own}
        for _, event in read_lines(self.run_log.path):
            if event.get("stage") == self.stage and "scores" in event:
                if not own <= event["scores"].keys():
                    raise UserError(
                        f"{self.during.data} has changed since {self.stage} began, so scores do "
                        "not compare; restore it, or give another --out"
                    )
                return

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Score what the stage starts from, unless it continues from a checkpoint."""
        if state.global_step == 0:
            self._score(state, control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Score if this step is due, and decide what follows from the score."""
        step, every = state.global_step, self.during.every
        if step % every and step != state.max_steps:
            return
        score = self._score(state, control)
        if state.best_metric is None or score > state.best_metric:
            state.best_metric, state.best_global_step = score, step
            control.should_save |= self.during.keep_best
        elif self.during.patience is not None:
            since_best = (step - (state.best_global_step or 0)) // every
            if since_best >= self.during.patience:
                control.should_training_stop = True
                # A stage that resumed from here would train a step more. It comes here again
                # from the checkpoint before.
                control.should_save = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Take the best step as the result, and say what the stage has gained."""
        last = state.global_step
        self.kept_step = (self.during.keep_best and state.best_global_step) or last
        if self.kept_step != last:
            self.trainer.restore(checkpoint_after(Path(str(args.output_dir)), self.kept_step))
        scores = {event["step"]: event[SCORE] for event in state.log_history if SCORE in event}
        if not {0, self.kept_step} <= scores.keys():
            return  # the user asked for scores that only inform after the stage had begun
        start, end = scores[0], scores[self.kept_step]
        self.run_log.write(
            stage=self.stage, kept={"step": self.kept_step, "score": end, "start": start}
        )
        self.run_log.console.print(
            f"{self.stage}: the result is step {self.kept_step} of {last}; its score is {end:.1f}, "
            f"and {start:.1f} was that of step 0",
            highlight=False,
        )
        if end <= start:
            text = (
                f"the score is {end:.1f} and was {start:.1f} before the stage: on this data the "
                "encoder has not become better; lower the learning rate, train other rows, or "
                "leave the stage out"
            )
            warn(self.run_log, self.stage, self.kept_step, text)

    def _score(self, state: TrainerState, control: TrainerControl) -> float:
        """Score, write the scores to the log and the trackers, and return their mean."""
        step, should_log = state.global_step, control.should_log
        scores = world.from_main(self._scores)
        mean = round(statistics.mean(score.value for score in scores), 4)
        if state.is_world_process_zero:
            by_task = {one.task: {one.metric: one.value, "over": one.over} for one in scores}
            self.run_log.write(stage=self.stage, step=step, score=mean, scores=by_task)
            shown = "; ".join(f"{s.task} {s.metric} {s.value:.1f} ({s.over})" for s in scores)
            self.run_log.console.print(f"step {step}: {shown}", markup=False, highlight=False)
        self.trainer.log(
            {SCORE: mean} | {f"eval_{one.task}_{one.metric}": one.value for one in scores}
        )
        control.should_log = should_log  # the Trainer took this for the log of the loss
        return mean

    def _scores(self) -> list[TaskScore]:
        with self._as_saved(), _same_random_state():
            return self.development.scores(self.model)

    @contextmanager
    def _as_saved(self) -> Iterator[None]:
        """Let the encoder read texts in a block as it will when it is loaded."""
        trained = self.model.max_seq_length, self.model.prompts
        self.model.max_seq_length = self.max_seq_length
        self.model.prompts = {**self.model.prompts, **self.prompts}
        try:
            with torch.no_grad(), computing_in(self.model, self.dtype):
                yield
        finally:
            self.model.max_seq_length, self.model.prompts = trained


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Leave all random states as they are before a block; mteb sets the seeds of all of them."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
