"""Clustering-then-merging: memory tokens with similar states count once in the embedding.

This is the paper's remedy for redundant memory tokens. The paper does not give the algorithm. Here
it is average linkage on cosine distance: the two clusters with the highest average cosine between
their tokens merge, as long as this average reaches a threshold.
"""

from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.module import Module
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, WordWeights
from torch import nn

from llm2comp.errors import UserError
from llm2comp.model.memory_tokens import memory_token_names

ROUNDING = 1e-9
"""More than the error of a cosine in float64, so that equal states merge at a threshold of 1."""


class UnsavableModule(Module):
    """A module that cannot be saved, because the folder would not load without this package."""

    def save(self, output_path: str, *_: Any, **__: Any) -> NoReturn:
        """Refuse to save.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{output_path} is not written: {type(self).__name__} works in memory only; save the "
            "model without it"
        )


class MergeMemory(UnsavableModule):
    """Replaces `WordWeights`, so that each cluster of memory tokens has the weight 1.

    The embedding is the mean over clusters of the mean over each cluster's tokens. That is a
    weighted mean over tokens with the weight 1 / (size of the token's cluster), which
    `Pooling(mean)` computes afterwards.

    Args:
        word_weights: gives memory tokens the weight 1 and all others 0.
        threshold: clusters merge if the average cosine between their tokens is at least this.
    """

    config_keys = ["threshold"]  # noqa: RUF012 (sentence-transformers reads a list)

    def __init__(self, word_weights: WordWeights, threshold: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.word_weights = word_weights
        self.threshold = threshold

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Multiply token outputs by their weights.

        Args:
            features: with `token_embeddings` `(batch, length, hidden)`, and `input_ids` and
                `attention_mask` `(batch, length)`.

        Returns:
            The features with weighted `token_embeddings`, and `token_weights_sum` `(batch,)`, which
            is the number of clusters of each text.
        """
        states, mask = features["token_embeddings"], features["attention_mask"]
        # Weights are float32 whatever the dtype of the model, as in WordWeights, because bfloat16
        # would round 1/3.
        token_weights = (
            self.word_weights.emb_layer(features["input_ids"]).squeeze(-1) * mask.float()
        )
        is_memory = token_weights > 0
        memory = states[is_memory].detach().float().cpu().numpy()  # one copy per batch
        texts = np.split(memory, is_memory.sum(1).cumsum(0)[:-1].cpu().numpy())
        merged = np.concatenate([cluster_weights(text, self.threshold) for text in texts])
        weights = token_weights.masked_scatter(
            is_memory, torch.from_numpy(merged).to(token_weights)
        )
        return features | {
            "token_embeddings": states * weights.unsqueeze(-1),
            "token_weights_sum": weights.sum(1),
        }


def cluster_weights(
    states: npt.NDArray[np.floating[Any]], threshold: float
) -> npt.NDArray[np.float64]:
    """Return 1 / (size of the cluster) for each memory token of a text.

    A state without a direction, zero or not finite, is a cluster of its own.

    Args:
        states: `(k, hidden)`, of one text.
        threshold: as in `MergeMemory`.

    Returns:
        `(k,)`.
    """
    if len(states) < 2:
        return np.ones(len(states))
    distances = np.nan_to_num(pdist(states.astype(np.float64), "cosine"), nan=1.0)
    labels = fcluster(linkage(distances, "average"), 1 - threshold + ROUNDING, "distance")
    weights: npt.NDArray[np.float64] = 1 / np.bincount(labels)[labels]
    return weights


def merge_memory(model: SentenceTransformer, threshold: float) -> SentenceTransformer:
    """Let an encoder merge its memory tokens before pooling, in memory only.

    A second call replaces the threshold. If an average cosine is within rounding of the threshold,
    the text may be embedded differently in another batch.

    Args:
        model: an encoder that pools over memory tokens; changed in place.
        threshold: above 0 and at most 1; with 1 only equal states merge.

    Returns:
        The same model.

    Raises:
        UserError: if the threshold is out of range, or the model pools over anything else.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"merging threshold {threshold} is not above 0 and at most 1")
    for name, module in model.named_children():
        weights = module.word_weights if isinstance(module, MergeMemory) else module
        if weights is memory_weights(model):
            setattr(model, name, MergeMemory(weights, threshold))
            return model
    raise UserError("this model does not pool over memory tokens, so there are none to merge")


def keep_dimensions(model: SentenceTransformer, dim: int) -> None:
    """Let an encoder give the first dimensions of its embeddings, scaled to unit length.

    A stock module does it, so that all clients read a folder that is saved afterwards.

    Args:
        model: an encoder; changed in place.
        dim: number of dimensions to keep.
    """
    whole = model.get_embedding_dimension()
    assert whole is not None
    if not isinstance(model[-1], Normalize):
        model.append(Normalize())
    first = Dense(whole, dim, False, nn.Identity(), init_weight=torch.eye(dim, whole))
    model.insert(len(model) - 1, first)


def memory_weights(model: SentenceTransformer) -> WordWeights | None:
    """Return the module that selects memory tokens for pooling; None if a model pools otherwise."""
    for module in model.children():
        weights = module.word_weights if isinstance(module, MergeMemory) else module
        if isinstance(weights, WordWeights) and _weighs_memory_only(weights):
            return weights
    return None


def _weighs_memory_only(module: WordWeights) -> bool:
    """Return whether all weights that are not zero are those of memory tokens."""
    weights = module.emb_layer.weight.flatten().tolist()
    weighed = {word for word, weight in zip(module.vocab, weights, strict=True) if weight}
    return bool(weighed) and weighed.issubset(memory_token_names(len(module.vocab)))
