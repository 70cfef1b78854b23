"""Pretext objectives: one file each, one line in :data:`OBJECTIVES`."""

from collections.abc import Callable

from torch import Tensor

from llm2comp.compressor import Compressor
from llm2comp.objectives.batch import Batch
from llm2comp.objectives.continuation import continuation_loss
from llm2comp.objectives.distillation import distillation_loss
from llm2comp.objectives.reconstruction import reconstruction_loss

Objective = Callable[[Compressor, Tensor, Batch], Tensor]
"""``(compressor, memory (batch, m, hidden), batch) -> scalar loss in nats per token``."""

OBJECTIVES: dict[str, Objective] = {
    "reconstruction": reconstruction_loss,
    "continuation": continuation_loss,
    "distillation": distillation_loss,
}

__all__ = ["OBJECTIVES", "Batch", "Objective"]
