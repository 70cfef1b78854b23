"""Pretext objectives: one file each, one line in :data:`OBJECTIVES`."""

from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.continuation import Continuation
from llm2comp.training.objectives.distillation import Distillation
from llm2comp.training.objectives.embedding_prediction import EmbeddingPrediction
from llm2comp.training.objectives.mntp import MaskedNextTokenPrediction
from llm2comp.training.objectives.objective import Compression, Objective
from llm2comp.training.objectives.reconstruction import Reconstruction

OBJECTIVES: dict[str, type[Objective]] = {
    "reconstruction": Reconstruction,
    "continuation": Continuation,
    "distillation": Distillation,
    "mntp": MaskedNextTokenPrediction,
    "embedding_prediction": EmbeddingPrediction,
}

__all__ = ["OBJECTIVES", "Batch", "Compression", "Objective"]
