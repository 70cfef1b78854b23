"""The objectives of stage 1 by name. A new objective needs its own file and a line here."""

from llm2comp.training.objectives.continuation import Continuation
from llm2comp.training.objectives.distillation import Distillation
from llm2comp.training.objectives.embedding_prediction import EmbeddingPrediction
from llm2comp.training.objectives.mntp import MaskedNextTokenPrediction
from llm2comp.training.objectives.objective import Objective
from llm2comp.training.objectives.prefix_reconstruction import PrefixReconstruction
from llm2comp.training.objectives.reconstruction import Reconstruction

OBJECTIVES: dict[str, type[Objective]] = {
    "reconstruction": Reconstruction,
    "prefix_reconstruction": PrefixReconstruction,
    "continuation": Continuation,
    "distillation": Distillation,
    "mntp": MaskedNextTokenPrediction,
    "embedding_prediction": EmbeddingPrediction,
}
"""Every objective by the name that a recipe gives it."""
