"""Training in rounds, each with negatives that the encoder so far has mined.

A round ends as a run does that is stopped after a checkpoint, and the next one begins as a run that
is resumed. So a stage that was really stopped gives the same encoder as one that was not.
"""

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm2comp.recipe import StageBase, Supervised


class RoundOver(Exception):  # noqa: N818 (it is no error)
    """The last step of a round is in a checkpoint."""


class RoundEnd(TrainerCallback):
    """Ends a round: writes a checkpoint after its last step, and raises `RoundOver`.

    A stage that ends early, because it no longer gets better, ends at this step too.

    Args:
        step: the last step of the round.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Ask for a checkpoint."""
        if self._is_over(state, control):
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """End the round.

        Raises:
            RoundOver: if this is its last step.
        """
        if self._is_over(state, control):
            raise RoundOver

    def _is_over(self, state: TrainerState, control: TrainerControl) -> bool:
        return state.global_step == self.step and not control.should_training_stop


def first_step(stage: StageBase, done: int) -> int:
    """Return the step after which the negatives were mined that a stage goes on with.

    Args:
        stage: the stage.
        done: steps that are done.
    """
    every = every_of(stage)
    return min(done, stage.steps - 1) // every * every


def every_of(stage: StageBase) -> int:
    """Return the steps of a round; all of them if a stage mines once or not at all."""
    mining = stage.mining if isinstance(stage, Supervised) else None
    return mining.every if mining is not None and mining.every is not None else stage.steps
