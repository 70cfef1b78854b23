"""Clustering-then-merging: memory tokens that say the same count once in the embedding.

The paper's remedy for redundant memory tokens; it does not give the algorithm.
Here it is average linkage on cosine distance: the two clusters whose tokens
are most alike on average merge, as long as that average reaches the threshold.
"""

from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.module import Module
from sentence_transformers.sentence_transformer.modules import WordWeights

from llm2comp.errors import UserError
from llm2comp.model.memory_tokens import memory_tokens

ROUNDING = 1e-9
"""Above float64's error in a cosine, so that equal vectors merge at a threshold of 1."""


class UnsavableModule(Module):
    """A module that refuses to be saved: the folder would not load without this package."""

    def save(self, output_path: str, *_: Any, **__: Any) -> NoReturn:
        """Refuse.

        Raises:
            UserError: always.
        """
        raise UserError(f"{output_path}: {type(self).__name__} works in memory only, not saved")


class MergeMemory(UnsavableModule):
    """Stands in the place of ``WordWeights``: clusters weigh 1, not memory tokens.

    The mean over clusters of each one's mean is the mean over tokens where a
    token weighs 1 / size of its cluster, which ``Pooling(mean)`` then takes.

    Args:
        word_weights: weighs memory tokens 1 and all else 0.
        threshold: clusters merge if the average cosine between their tokens is at least this.
    """

    config_keys = ["threshold"]  # noqa: RUF012 (as sentence-transformers has it)

    def __init__(self, word_weights: WordWeights, threshold: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.word_weights = word_weights
        self.threshold = threshold

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Weigh ``token_embeddings`` ``(batch, length, hidden)`` and give the sum of the weights.

        ``token_weights_sum`` ``(batch,)`` is the number of a text's clusters.
        """
        states, mask = features["token_embeddings"], features["attention_mask"]
        # In float32 whatever the model is in, as WordWeights has it: 1/3 needs the precision.
        plain = self.word_weights.emb_layer(features["input_ids"]).squeeze(-1) * mask.float()
        memory = plain > 0
        read = states[memory].detach().float().cpu().numpy()  # one copy a batch, whatever device
        texts = np.split(read, memory.sum(1).cumsum(0)[:-1].cpu().numpy())
        merged = np.concatenate([cluster_weights(text, self.threshold) for text in texts])
        weights = plain.masked_scatter(memory, torch.from_numpy(merged).to(plain))
        return features | {
            "token_embeddings": states * weights.unsqueeze(-1),
            "token_weights_sum": weights.sum(1),
        }


def cluster_weights(
    states: npt.NDArray[np.floating[Any]], threshold: float
) -> npt.NDArray[np.float64]:
    """Return ``(k,)``: 1 / size of the cluster that each of a text's ``(k, hidden)`` states is in.

    A state without a direction (zero, or not finite) is like no other.
    """
    if len(states) < 2:
        return np.ones(len(states))
    distances = np.nan_to_num(pdist(states.astype(np.float64), "cosine"), nan=1.0)
    labels = fcluster(linkage(distances, "average"), 1 - threshold + ROUNDING, "distance")
    weights: npt.NDArray[np.float64] = 1 / np.bincount(labels)[labels]
    return weights


def merge_memory(model: SentenceTransformer, threshold: float) -> SentenceTransformer:
    """Make an encoder merge its memory tokens before pooling, in place and in memory only.

    Given again, the last threshold counts. A text with an average cosine within
    rounding of the threshold may come out differently in another batch.

    Args:
        model: an encoder that pools over memory tokens.
        threshold: in (0, 1]; at 1 only equal tokens merge.

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


def memory_weights(model: SentenceTransformer) -> WordWeights | None:
    """Return the module by which a model pools over memory tokens alone; None if it does not."""
    for module in model.children():
        weights = module.word_weights if isinstance(module, MergeMemory) else module
        if isinstance(weights, WordWeights) and _weighs_memory_only(weights):
            return weights
    return None


def _weighs_memory_only(module: WordWeights) -> bool:
    weights = module.emb_layer.weight.flatten().tolist()
    weighed = {word for word, weight in zip(module.vocab, weights, strict=True) if weight}
    return bool(weighed) and weighed.issubset(memory_tokens(len(module.vocab)))
