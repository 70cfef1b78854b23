"""How different the k memory tokens of a text are before they are pooled."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MemoryTokens:
    """Measures of memory tokens, averaged over texts.

    Attributes:
        cosines: `(k, k)`, the mean cosine between token i and token j of a text (paper, figure 6).
        redundancy: mean of `cosines` without the diagonal; 1 if all tokens are equal.
        pooling_loss: share of the energy that pooling loses: 1 minus the squared norm of the mean
            of a text's tokens, which are scaled to unit length. It is 0 if the tokens are equal
            and `1 - 1/k` if they are orthogonal.
    """

    cosines: list[list[float]]
    redundancy: float
    pooling_loss: float


def measure(batches: Iterable[npt.NDArray[np.floating]]) -> MemoryTokens:
    """Measure memory tokens in float64.

    Args:
        batches: states of memory tokens, each of shape `(texts, k, hidden)`.
    """
    total: Floats | float = 0.0
    pooled_energy = 0.0
    texts = 0
    for batch in batches:
        states = batch.astype(np.float64)
        norms = np.linalg.norm(states, axis=-1, keepdims=True)
        unit = states / np.where(norms > 0, norms, 1)
        total = total + np.einsum("nih,njh->ij", unit, unit)
        pooled_energy += float(np.square(unit.mean(1)).sum())
        texts += len(states)
    cosines = np.asarray(total) / texts
    k = len(cosines)
    redundancy = (cosines.sum() - np.trace(cosines)) / (k * (k - 1)) if k > 1 else 1.0
    return MemoryTokens(cosines.tolist(), float(redundancy), 1 - pooled_energy / texts)
