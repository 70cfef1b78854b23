"""Losses of rows with the labels of a teacher."""

import torch
from datasets import Dataset, List
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, EmbedDistillLoss
from sentence_transformers.util import pairwise_cos_sim
from torch import Tensor

LABEL = "label"
"""Column with what a teacher says of a row: its score of the positive and of each negative, or its
vector `(dimension,)` of each text."""


def distillation(
    model: SentenceTransformer, labelled: Dataset, temperature: float
) -> torch.nn.Module:
    """Return the loss of rows with labels.

    With vectors, it is one minus the cosine of the two encoders' vectors of a text (EmbedDistill,
    arXiv 2301.12005). With scores, it is the KL divergence between two distributions over the
    positive and the negatives of a row (arXiv 2010.11386): the softmax of the teacher's logits, and
    that of the cosines divided by the temperature.

    Args:
        model: the encoder that learns.
        labelled: the rows.
        temperature: of the cosines.
    """
    if isinstance(labelled.features[LABEL].feature, List):
        return EmbedDistillLoss(model)

    # The loss has temperatures of its own, and multiplies by the square of one of them. The
    # gradient would be 400 times smaller than that of other sources at a temperature of 0.05.
    def score(queries: Tensor, texts: Tensor) -> Tensor:
        return pairwise_cos_sim(queries, texts) / temperature

    return DistillKLDivLoss(model, similarity_fct=score)
