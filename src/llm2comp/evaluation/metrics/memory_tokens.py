"""The k memory tokens of an encoder before they are pooled: do they say k different things?"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MemoryTokens:
    """Memory tokens over texts.

    Attributes:
        cosines: mean cosine of token i and token j of one text ``(k, k)`` (paper, figure 6).
        redundancy: its mean off the diagonal; 1 where all tokens are alike.
        pooling_loss: the share of the tokens' energy that their mean loses: 1 minus the squared
            norm of the mean of a text's unit tokens; 0 where they are alike, ``1 - 1/k`` where
            they are orthogonal.
    """

    cosines: list[list[float]]
    redundancy: float
    pooling_loss: float


def measure(batches: Iterable[npt.NDArray[np.floating]]) -> MemoryTokens:
    """Measure memory tokens, given as batches ``(texts, k, hidden)``, float64 inside."""
    total: Floats | float = 0.0
    kept = 0.0
    texts = 0
    for batch in batches:
        states = batch.astype(np.float64)
        norms = np.linalg.norm(states, axis=-1, keepdims=True)
        unit = states / np.where(norms > 0, norms, 1)
        total = total + np.einsum("nih,njh->ij", unit, unit)
        kept += float(np.square(unit.mean(1)).sum())
        texts += len(states)
    cosines = np.asarray(total) / texts
    k = len(cosines)
    off = (cosines.sum() - np.trace(cosines)) / (k * (k - 1)) if k > 1 else 1.0
    return MemoryTokens(cosines.tolist(), float(off), 1 - kept / texts)
