"""A checkpoint before a process ends by SIGTERM, which schedulers send before they take a machine.

The Trainer has `enable_jit_checkpoint` for this. It waits three seconds, lets each process decide
by itself at which step it stops, and ends the training as if it were finished.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm2comp.training.distributed import world


class Preemption(TrainerCallback):
    """Puts SIGTERM off until the step that is trained is in a checkpoint.

    All processes stop after the same step, whichever of them got the signal first.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self.is_agreed = False

    @contextmanager
    def puts_off(self) -> Iterator[None]:
        """Put the signal off within the block, in which the Trainer trains."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
            if self.is_asked or self.is_agreed:
                os.kill(os.getpid(), signal.SIGTERM)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.is_asked = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a checkpoint if a process got the signal."""
        self.is_agreed = world.total_count(self.is_asked) > 0
        # A stage that resumed from where it ends early would train a step more.
        control.should_save |= self.is_agreed and not control.should_training_stop

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """End as the signal asked."""
        if self.is_agreed:
            raise PreemptedError


class PreemptedError(Exception):
    """The process ends by SIGTERM as soon as the signal is not put off any more."""
