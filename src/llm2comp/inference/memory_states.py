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
def collect_memory_states(
    model: SentenceTransformer, states: list[npt.NDArray[np.floating]]
) -> Iterator[None]:
    """Collect the states of memory tokens of every batch that is encoded in a block.

    Args:
        model: an encoder; without memory tokens nothing is collected.
        states: gets one array `(texts, k, hidden)`, float32, per batch.
    """
    weights = memory_weights(model)
    if weights is None:
        yield
        return

    def collect(_: nn.Module, __: Any, features: dict[str, Any]) -> None:
        token_weights = weights.emb_layer(features["input_ids"]).squeeze(-1)
        is_memory = token_weights * features["attention_mask"] > 0
        memory = features["token_embeddings"][is_memory].detach().float().cpu()
        states.append(memory.reshape(len(is_memory), -1, memory.shape[-1]).numpy())

    hook = model[0].register_forward_hook(collect)
    try:
        with torch.no_grad():
            yield
    finally:
        hook.remove()
