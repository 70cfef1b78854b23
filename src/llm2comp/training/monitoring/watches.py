"""Callbacks that measure held-out texts while a stage trains, and warn of what they see."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import takewhile

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm2comp.data.pairs import DATASET, module_name
from llm2comp.data.sources import SCORE
from llm2comp.evaluation.metrics import memory_tokens
from llm2comp.inference.memory_states import collect_memory_states
from llm2comp.inference.precision import computing_in
from llm2comp.model.compressor import Compressor
from llm2comp.model.modules import UnsavableModule
from llm2comp.recipe import Pretext
from llm2comp.training.distributed import world
from llm2comp.training.distributed.sharded import some_process_has_all
from llm2comp.training.monitoring import held_out
from llm2comp.training.monitoring.divergence import DivergenceError
from llm2comp.training.monitoring.health import warn
from llm2comp.training.monitoring.held_out import Directions, HeldOut
from llm2comp.training.monitoring.run_log import RunLog
from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.objective import Compression, Objective

FLAT_GAP = 0.1
"""A gap below this, in nats per token, says that memory does not depend on its text."""
FLAT_MEASUREMENTS = 3
"""After this many flat gaps in a row there is a warning."""
COLLAPSED = "they have collapsed"
"""What the warning of collapse says, by which it is found in the log."""
COLLAPSED_COSINE = 0.97
"""A mean cosine between texts above this says that all texts have nearly the same embedding."""
COLLAPSED_DIMENSION = 1.5
"""An effective dimension (RankMe) below this says that all texts lie on one line."""


class EvalCallback(TrainerCallback, ABC):
    """A callback that measures before the first step, every N steps and after the last step.

    It measures on the main process only, and the others wait for it. If no process has
    the whole model (FSDP, ZeRO-3), nothing is measured.

    Attributes:
        every: steps between two measurements.
    """

    every: int

    @abstractmethod
    def measure(self, step: int) -> None:
        """Measure after this many steps."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Measure what the stage starts from, unless it continues from a checkpoint."""
        if state.global_step == 0 and some_process_has_all():
            world.from_main(lambda: self.measure(0))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Measure if this step is due."""
        due = state.global_step % self.every == 0 or state.global_step == state.max_steps
        if due and some_process_has_all():
            world.from_main(lambda: self.measure(state.global_step))


class HeldOutWatch(EvalCallback):
    """Measures stage 1 on held-out passages: the objective's loss and the embeddings.

    An objective that compresses is judged by the gap, any other objective by its loss. It warns
    once if the gap stays flat, and once if the embeddings collapse.

    Args:
        compressor: the model in training.
        objective: what it is trained on.
        batches: held-out passages, at least two per batch.
        stage: settings of the stage; `eval_steps` says how often to measure.
        dtype: precision of autocast.
        log: where measurements are written.
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
        self.run_log = log

    def measure(self, step: int) -> None:
        """Measure, log and warn."""
        with self.autocast:
            if isinstance(self.objective, Compression):
                values = self._measure_memory(self.objective, step)
            else:
                values = held_out.measure_loss(self.compressor, self.objective, self.batches)
                log_held_out(self.run_log, "pretext", step, values)
        if step:
            warn_of_collapse(self.run_log, "pretext", step, values)

    def _measure_memory(self, objective: Compression, step: int) -> dict[str, float]:
        """Measure and log an objective that compresses."""
        result = held_out.measure(self.compressor, objective, self.batches)
        _require_finite(asdict(result))
        self.run_log.write(stage="pretext", step=step, held_out=result.as_dict())
        self.run_log.console.print(_memory_line(step, result))
        self._warn_of_a_flat_gap(step, result.gap)
        return asdict(result)

    def _warn_of_a_flat_gap(self, step: int, gap: float) -> None:
        # The log has the measurements of earlier sessions too, if the stage was stopped.
        gaps = [
            event["held_out"]["gap"]
            for event in self.run_log.events("pretext")
            if event.get("step") and "held_out" in event
        ]
        flat = list(takewhile(lambda one: one < FLAT_GAP, reversed(gaps)))
        if len(flat) == FLAT_MEASUREMENTS:
            warn(
                self.run_log,
                "pretext",
                step,
                f"memory carries little of its text (the gap is {gap:.3f} nats per token): "
                "compression has not ignited; try causal attention, a fixed split and a higher "
                "learning rate, see docs/concepts/ignition.md",
            )


class CollapseWatch(EvalCallback):
    """Measures UCL or SCL on held-out pairs, and warns once if the embeddings collapse.

    Args:
        model: the encoder in training.
        pairs: held-out anchors and positives. Nothing is measured with fewer than two.
        stage: name of the stage.
        every: steps between two measurements.
        temperature: temperature of the stage's loss.
        dropout: whether the two texts of a pair are equal, so that only dropout makes their
            embeddings differ (UCL).
        dtype: precision that the encoder computes in.
        log: where measurements are written.
        prompts: what is put before the anchor and the positive of each pair. With none given,
            nothing is.
        scores: how alike each pair is. The loss is then CoSENT, as in training, because two texts
            of a pair may be far from alike. Otherwise it is InfoNCE.
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
        prompts: Sequence[tuple[str, str]] = (),
        scores: Sequence[float] | None = None,
    ) -> None:
        self.model = model
        self.pairs = pairs
        self.prompts = prompts or [("", "")] * len(pairs)
        self.scores = scores
        self.stage = stage
        self.every = every
        self.temperature = temperature
        self.dropout = dropout
        self.dtype = dtype
        self.run_log = log

    def measure(self, step: int) -> None:
        """Measure, log and warn."""
        if len(self.pairs) < 2:
            return
        with torch.no_grad(), computing_in(self.model, self.dtype), torch.random.fork_rng():
            # The same dropout at each measurement; fork_rng leaves that of training as it was.
            torch.manual_seed(0)
            values = self._values()
            self.model.train()
        log_held_out(self.run_log, self.stage, step, values)
        warn_of_collapse(self.run_log, self.stage, step, values)

    def _values(self) -> dict[str, float]:
        """Return the loss of the pairs, and how the positives use their space."""
        anchors, positives = (list(side) for side in zip(*self.pairs, strict=True))
        of_anchors, of_positives = zip(*self.prompts, strict=True)
        states: list[npt.NDArray[np.floating]] = []
        self.model.eval()
        with collect_memory_states(self.model, states):
            without_dropout = self._embed(positives, of_positives)
        self.model.train(self.dropout)
        for module in self.model:
            if isinstance(module, UnsavableModule):  # it gives other embeddings in training
                module.eval()
        anchor_embeddings = self._embed(anchors, of_anchors)
        positive_embeddings = (
            self._embed(positives, of_positives) if self.dropout else without_dropout
        )
        loss = self._loss(anchor_embeddings, positive_embeddings)
        values = {"loss": loss.item(), **asdict(Directions.of(without_dropout))}
        if states:
            values["token_cosine"] = memory_tokens.measure(states).redundancy
        return values

    def _loss(self, anchors: Tensor, positives: Tensor) -> Tensor:
        """Return the loss of pairs of embeddings."""
        if self.scores is not None:
            cosent = CoSENTLoss(self.model, scale=1.0 / self.temperature)
            scores = torch.tensor(self.scores, device=anchors.device)
            return cosent.compute_loss_from_embeddings([anchors, positives], scores)
        logits = normalize(anchors, dim=-1) @ normalize(positives, dim=-1).T / self.temperature
        return cross_entropy(logits, torch.arange(len(logits), device=logits.device))

    def _embed(self, texts: Sequence[str], prompts: Sequence[str]) -> Tensor:
        """Return the embeddings `(texts, dimension)` of texts after their prompts, in float32."""
        embeddings: dict[int, Tensor] = {}
        for prompt in dict.fromkeys(prompts):  # a batch has one prompt
            places = [place for place, one in enumerate(prompts) if one == prompt]
            for start in range(0, len(places), held_out.BATCH):
                batch = places[start : start + held_out.BATCH]
                read = self.model.preprocess(
                    [texts[place] for place in batch], prompt=prompt or None
                )
                features = {
                    name: value.to(self.model.device) if isinstance(value, Tensor) else value
                    for name, value in read.items()
                }
                embedded = self.model(features)["sentence_embedding"].float()
                embeddings.update(zip(batch, embedded, strict=True))
        return torch.stack([embeddings[place] for place in range(len(texts))])


def prompts_of(
    held_out: Dataset, columns: Mapping[str, Mapping[str, str]]
) -> list[tuple[str, str]]:
    """Return what is put before the anchor and the positive of each held-out pair.

    Args:
        held_out: the pairs. Those that an older version drew do not say their dataset.
        columns: the prompt of each column, by the torch name of the dataset.
    """
    names = held_out[DATASET] if DATASET in held_out.column_names else [""] * len(held_out)
    own = (columns.get(module_name(name), {}) for name in names)
    return [(one.get("anchor", ""), one.get("positive", "")) for one in own]


def scores_of(held_out: Dataset) -> list[float] | None:
    """Return the scores of held-out pairs, or None if they have none.

    Those that an older version drew have none in any case.
    """
    if SCORE not in held_out.column_names or held_out.data.column(SCORE).null_count:
        return None
    return list(held_out[SCORE])


def log_held_out(log: RunLog, stage: str, step: int, values: Mapping[str, float]) -> None:
    """Write what was measured on held-out texts to the log, and show it in one line.

    Args:
        log: where measurements are written.
        stage: name of the stage.
        step: step of the measurement.
        values: `loss`, the attributes of `Directions` and, if the encoder has memory tokens,
            `token_cosine`.

    Raises:
        DivergenceError: if a value is not finite.
    """
    _require_finite(values)
    log.write(stage=stage, step=step, held_out={n: round(value, 4) for n, value in values.items()})
    tokens = values.get("token_cosine")
    between_tokens = "" if tokens is None else f", between memory tokens {tokens:.2f}"
    log.console.print(
        f"[dim]step {step}: held-out loss {values['loss']:.3f}; effective dimension "
        f"{values['rankme']:.1f}; cosine between texts {values['text_cosine']:.2f}{between_tokens}"
    )


def _memory_line(step: int, result: HeldOut) -> str:
    """Return the line that shows a measurement of an objective that compresses."""
    return (
        f"[dim]step {step}: held-out loss {result.matched:.3f}, with another text's memory "
        f"{result.mismatched:.3f}, gap {result.gap:.3f}; with the last k tokens in place of memory "
        f"{result.last_tokens:.3f}; cosine between memory tokens {result.token_cosine:.2f}, "
        f"between texts {result.text_cosine:.2f}; effective dimension {result.rankme:.1f}"
    )


def warn_of_collapse(log: RunLog, stage: str, step: int, values: Mapping[str, float]) -> None:
    """Warn once in a stage if the embeddings of different texts have become alike.

    They are alike if their mean cosine is near 1 or their effective dimension (RankMe, Garrido et
    al., 2023) is near 1, which is that of opposite vectors too.

    Args:
        log: where the warning is written.
        stage: name of the stage.
        step: step of the measurement.
        values: `text_cosine` and `rankme` of held-out texts.
    """
    cosine, dimension = values["text_cosine"], values["rankme"]
    collapsed = cosine > COLLAPSED_COSINE or dimension < COLLAPSED_DIMENSION
    warned = any(COLLAPSED in event.get("warning", "") for event in log.events(stage))
    if collapsed and not warned:
        warn(
            log,
            stage,
            step,
            f"the embeddings of different texts have a mean cosine of {cosine:.3f} and an "
            f"effective dimension of {dimension:.1f}: {COLLAPSED}; lower the learning rate "
            "or warm up longer",
        )


def _require_finite(values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise DivergenceError(f"{name} of the held-out texts is not finite")
