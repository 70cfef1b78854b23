"""Pretext objectives: one file each, one line in :data:`OBJECTIVES`."""

from llm2comp.objectives.batch import Batch
from llm2comp.objectives.continuation import Continuation
from llm2comp.objectives.distillation import Distillation
from llm2comp.objectives.embedding_prediction import EmbeddingPrediction
from llm2comp.objectives.mntp import MaskedNextTokenPrediction
from llm2comp.objectives.objective import Compression, Objective
from llm2comp.objectives.reconstruction import Reconstruction

OBJECTIVES: dict[str, type[Objective]] = {
    "reconstruction": Reconstruction,
    "continuation": Continuation,
    "distillation": Distillation,
    "mntp": MaskedNextTokenPrediction,
    "embedding_prediction": EmbeddingPrediction,
}

__all__ = ["OBJECTIVES", "Batch", "Compression", "Objective"]
