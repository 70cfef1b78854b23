"""What a stage that diverges leaves: one line for the user, a line in the log, good checkpoints."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm2comp.data.drawn.rows import ROWS
from llm2comp.errors import UserError, counted
from llm2comp.recipe import Recipe, StageBase
from llm2comp.training.checkpoints import MINED, step_of
from llm2comp.training.stage_context import StageContext

MARK = "diverged.txt"
"""File in the work folder of a stage that diverged, with the line that the user saw."""
REMEDIES = ("learning_rate", "memory_learning_rate", "warmup_steps", "max_grad_norm")
"""Keys of a stage that may change when a run goes on after the stage diverged."""
SHOWN = 2
"""Rows of the batch that the line shows; the log has all of them."""


class DivergenceError(ArithmeticError):
    """A number that training computed is NaN or infinite."""


def stop(
    what: object,
    context: StageContext[StageBase],
    *,
    step: int,
    good_step: int,
    resumed_step: int = 0,
    rates: Sequence[float] = (),
    rows: Sequence[str] = (),
) -> UserError:
    """Note a divergence, remove checkpoints that may be bad, and return what the user reads.

    Negatives that the encoder mined after the last good checkpoint are removed too.
    If the stage diverges again before it has written a new checkpoint that is good, the one that it
    went on from is removed too: its weights may be finite and far too large all the same.

    Args:
        what: what was not finite.
        context: the stage.
        step: step that diverged, from 1; 0 if it is the state before the first step.
        good_step: the last step whose loss and gradient were good. Checkpoints of this step and
            later ones hold weights after it and are removed.
        resumed_step: step of the checkpoint that training went on from; 0 if it began.
        rates: the learning rates of the step.
        rows: how the texts of the step's batch begin.
    """
    stage, log = context.stage, context.log
    name = stage.stage
    log.write(
        stage=name,
        diverged={"step": step, "what": str(what), "learning_rates": rates, "rows": rows},
    )
    rate = " and ".join(f"{rate:g}" for rate in rates or [stage.learning_rate])
    parts = [f"{name} diverged at step {step} (learning rate {rate}): {what}"]
    if rows:
        shown = ", ".join(repr(row) for row in rows[:SHOWN])
        begin = counted(len(rows), "row begins", "rows begin")
        parts.append(f"its {begin} with {shown} ({log.path} has all)")
    checkpoints = sorted(context.workdir.glob("checkpoint-*"), key=step_of)
    good = [c for c in checkpoints if step_of(c) < good_step]
    if resumed_step and has_diverged(context.workdir):
        newer = [c for c in good if step_of(c) > resumed_step]
        good = good if newer else [c for c in good if step_of(c) < resumed_step]
    for checkpoint in checkpoints:
        if checkpoint not in good:
            shutil.rmtree(checkpoint)
            parts.append(f"{checkpoint.name} was bad already and is removed")
    kept_step = step_of(good[-1]) if good else 0
    for mined in context.workdir.glob(f"{ROWS}/{MINED}-*"):
        if step_of(mined) > kept_step:
            shutil.rmtree(mined)
    onwards = f"goes on from {good[-1].name}" if good else "begins anew"
    parts.append(
        f"lower {name}.learning_rate (for example to {stage.learning_rate / 10:g}), raise "
        f"{name}.warmup_steps or lower {name}.max_grad_norm, and give the same --out again: the "
        f"stage {onwards}; or set backbone.dtype=float32 in a new --out"
    )
    line = "; ".join(parts)
    context.workdir.mkdir(parents=True, exist_ok=True)
    (context.workdir / MARK).write_text(line + "\n", encoding="utf-8", errors="backslashreplace")
    return UserError(line)


@contextmanager
def saving(context: StageContext[StageBase]) -> Iterator[None]:
    """Treat a trained encoder that turns out to be broken in a block as a divergence.

    Rounding, and the merge of the adapter, may break what the last step left whole.

    Args:
        context: the stage, whose encoder is merged and saved in the block.

    Raises:
        UserError: if the encoder is broken.
    """
    try:
        yield
    except UserError as error:  # the dry run had passed the same checks with other weights
        steps = context.stage.steps
        # The second time, the checkpoint that the stage went on from was bad too.
        good_step = 0 if has_diverged(context.workdir) else steps
        raise stop(error, context, step=steps, good_step=good_step) from error


def has_diverged(workdir: Path) -> bool:
    """Return whether the stage of a work folder has diverged, so that its `REMEDIES` may change."""
    return (workdir / MARK).exists()


def with_remedies(known: Recipe, wanted: Recipe, stages: Sequence[str]) -> Recipe:
    """Return a run's recipe with the `REMEDIES` that are wanted for some stages.

    Args:
        known: the recipe of the run.
        wanted: the recipe that the user gives now.
        stages: names of the stages that diverged.
    """
    new = {stage.stage: stage for stage in wanted.stages if stage.stage in stages}
    changed = [
        stage.model_copy(update=_remedies(stage, new[stage.stage])) if stage.stage in new else stage
        for stage in known.stages
    ]
    return known.model_copy(update={"stages": changed})


def _remedies(known: StageBase, wanted: StageBase) -> dict[str, Any]:
    """Return the `REMEDIES` of a stage that another one has.

    Whether memory embeddings have a learning rate of their own stays as it is, because it decides
    the groups of parameters in the optimiser's state.
    """
    remedies = wanted.model_dump(include=set(REMEDIES))
    if None in (known.memory_learning_rate, wanted.memory_learning_rate):
        del remedies["memory_learning_rate"]
    return remedies
