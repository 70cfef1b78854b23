"""The states of the memory tokens, collected while an encoder encodes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from llm2comp.model.modules import memory_weights


@contextmanager
def memory_states(
    model: SentenceTransformer, states: list[npt.NDArray[np.floating]]
) -> Iterator[None]:
    """Collect the memory tokens ``(texts, k, hidden)`` of every batch, if the model has any."""
    weights = memory_weights(model)
    if weights is None:
        yield
        return

    def collect(_: nn.Module, __: Any, features: dict[str, Any]) -> None:
        read = weights.emb_layer(features["input_ids"]).squeeze(-1) * features["attention_mask"] > 0
        tokens = features["token_embeddings"][read].detach().float().cpu()
        states.append(tokens.reshape(len(read), -1, tokens.shape[-1]).numpy())

    hook = model[0].register_forward_hook(collect)
    try:
        with torch.no_grad():
            yield
    finally:
        hook.remove()
