"""Watch stage 1 as it trains: what is held out, and when the attention opens."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm2comp.evaluation.metrics import memory_tokens
from llm2comp.inference.memory_states import collect_memory_states
from llm2comp.model.compressor import Compressor
from llm2comp.recipe import Pretext
from llm2comp.training import held_out
from llm2comp.training.held_out import Directions
from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.objective import Compression, Objective
from llm2comp.training.run_log import RunLog

logger = logging.getLogger("llm2comp")

FLAT_GAP = 0.1
"""A gap below this, in nats a token, says that memory has become a generic prefix."""


class EvalCallback(TrainerCallback, ABC):
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


class HeldOutWatch(EvalCallback):
    """Measures the objective and the embeddings on held-out text.

    An objective that compresses is judged by the gap, any other by its loss.
    There is one warning if the gap stays flat, and one if the embeddings collapse.
    """

    def __init__(
        self,
        compressor: Compressor,
        objective: Objective,
        batches: list[Batch],
        stage: Pretext,
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


logger = logging.getLogger("llm2comp")


ALIKE = 0.97


"""A mean cosine above this says that all texts have become one vector."""


BATCH = 16


def warn_of_collapse(stage: str, step: int, text_cosine: float) -> bool:
    """Warn in one line if texts have become alike; return whether they have."""
    collapsed = text_cosine > ALIKE
    if collapsed:
        logger.warning(
            "%s: the embeddings of different texts have a mean cosine of %.3f at step %d: they "
            "have collapsed; lower the learning rate or warm up longer",
            stage,
            text_cosine,
            step,
        )
    return collapsed


def report(log: RunLog, stage: str, step: int, values: dict[str, float]) -> None:
    """Log and show what was measured on held-out texts.

    Args:
        log: measurements go here.
        stage: name of the stage.
        step: of the measurement.
        values: ``loss``, what :class:`.Directions` holds, and, where there are memory tokens,
            ``token_cosine``.
    """
    log.write(stage=stage, step=step, held_out={n: round(value, 4) for n, value in values.items()})
    tokens = values.get("token_cosine")
    between = "" if tokens is None else f", between memory tokens {tokens:.2f}"
    log.console.print(
        f"[dim]step {step}: held-out loss {values['loss']:.3f}; effective dimension "
        f"{values['rankme']:.1f}; cosine between texts {values['text_cosine']:.2f}{between}"
    )


class CollapseWatch(EvalCallback):
    """Measures held-out pairs.

    Args:
        model: the encoder in training.
        pairs: held-out anchors and positives; fewer than two are not watched.
        stage: name of the stage.
        every: steps between measurements.
        temperature: of the stage's loss.
        dropout: pairs are equal texts, told apart by dropout alone (UCL).
        dtype: of autocast.
        log: measurements go here.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        pairs: Sequence[tuple[str, str]],
        stage: str,
        *,
        every: int,
        temperature: float,
        dropout: bool,
        dtype: torch.dtype,
        log: RunLog,
    ) -> None:
        self.model = model
        self.pairs = pairs
        self.stage = stage
        self.every = every
        self.temperature = temperature
        self.dropout = dropout
        self.autocast = torch.autocast(model.device.type, dtype, enabled=dtype == torch.bfloat16)
        self.log_file = log
        self.warned = False

    def measure(self, step: int) -> None:
        """Measure, log and warn."""
        if len(self.pairs) < 2:
            return
        with torch.no_grad(), self.autocast, torch.random.fork_rng():
            torch.manual_seed(0)  # the same dropout each time, and training's own untouched
            values = self._values()
            self.model.train()
        report(self.log_file, self.stage, step, values)
        if not self.warned:
            self.warned = warn_of_collapse(self.stage, step, values["text_cosine"])

    def _values(self) -> dict[str, float]:
        """Return the loss over in-batch negatives and how the positives use their space."""
        anchors, positives = (list(side) for side in zip(*self.pairs, strict=True))
        states: list[npt.NDArray[np.floating]] = []
        self.model.eval()
        with collect_memory_states(self.model, states):
            still = self._embed(positives)
        self.model.train(self.dropout)
        views = self._embed(anchors), self._embed(positives) if self.dropout else still
        ones, others = (normalize(view, dim=-1) for view in views)
        logits = ones @ others.T / self.temperature
        loss = cross_entropy(logits, torch.arange(len(logits), device=logits.device))
        values = {"loss": loss.item(), **asdict(Directions.of(still))}
        if states:
            values["token_cosine"] = memory_tokens.measure(states).redundancy
        return values

    def _embed(self, texts: Sequence[str]) -> Tensor:
        batches = [list(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
        vectors = []
        for batch in batches:
            features = {
                name: value.to(self.model.device) if isinstance(value, Tensor) else value
                for name, value in self.model.preprocess(batch).items()
            }
            vectors.append(self.model(features)["sentence_embedding"].float())
        return torch.cat(vectors)
