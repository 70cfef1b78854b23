"""Watch the contrastive stages: do the vectors of held-out texts keep their directions?"""

import logging
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from llm2comp.analysis import analyze, memory_tokens
from llm2comp.stages.directions import Directions
from llm2comp.stages.measuring import Measuring
from llm2comp.stages.run_log import RunLog

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


class CollapseWatch(Measuring):
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
        with analyze.memory_states(self.model, states):
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
