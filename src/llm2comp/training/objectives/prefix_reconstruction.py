"""Reconstruction of the part of a passage before a split point, and not of the whole passage."""

from llm2comp.training.objectives.reconstruction import Reconstruction


class PrefixReconstruction(Reconstruction):
    """The cross-entropy of the text `n_1 … n_a` given memory; a is the split point of a passage.

    All objectives with a split compress the same texts. The studies of docs/results/studies.md
    compare them with this one. Version 0.1 called it `reconstruction`.
    """

    whole_passage = False
