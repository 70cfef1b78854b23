"""The parts of a causal language model."""

from typing import cast

from torch import nn
from transformers import PreTrainedModel


def body_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model without its language-modelling head; a body itself is returned as it is."""
    return cast(PreTrainedModel, model.base_model)


def token_table(model: PreTrainedModel) -> nn.Embedding:
    """Return the embedding layer, whose weight is the token table `(tokens, hidden)`."""
    return cast(nn.Embedding, model.get_input_embeddings())
