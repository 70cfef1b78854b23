"""Alignment and uniformity of pairs and vectors, and hubs among neighbours."""

import numpy as np
import numpy.typing as npt
from scipy.stats import skew

Rows = npt.NDArray[np.floating]

NEIGHBOURS = 10
CHUNK = 1024


def alignment(anchors: Rows, positives: Rows) -> float:
    """Return the mean squared distance of positive pairs of unit vectors (Wang and Isola, 2020).

    From 0, where a pair's vectors are equal, to 4.
    """
    return float(np.square(anchors.astype(np.float64) - positives).sum(1).mean())


def uniformity(rows: Rows) -> float:
    """Return ``log mean exp(-2 |u - v|^2)`` over different unit vectors (Wang and Isola, 2020).

    From 0, where all vectors are equal, downwards: the lower, the more evenly
    they lie on the sphere. Costs n^2 products: give a sample.
    """
    n = len(rows)
    total = 0.0
    for start in range(0, n, CHUNK):
        cosines = rows[start : start + CHUNK].astype(np.float64) @ rows.T
        total += np.exp(4 * (cosines - 1)).sum()
    return float(np.log((total - n) / (n * (n - 1))))


def hubness(rows: Rows, k: int = NEIGHBOURS) -> float:
    """Return the skewness of k-occurrence (Radovanovic et al., 2010).

    The k-occurrence of a vector is of how many others it is among the k
    nearest. 0 where all are neighbours alike; above 1, a few hubs are near to
    everything. Costs n^2 products: give a sample.
    """
    k = min(k, len(rows) - 1)
    counts = np.zeros(len(rows), dtype=np.int64)
    for start in range(0, len(rows), CHUNK):
        cosines = rows[start : start + CHUNK] @ rows.T
        here = np.arange(len(cosines))
        cosines[here, start + here] = -np.inf
        nearest = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        counts += np.bincount(nearest.ravel(), minlength=len(rows))
    return float(skew(counts)) if counts.std() > 0 else 0.0
