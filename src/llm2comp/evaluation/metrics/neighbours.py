"""Alignment, uniformity and hubness of embeddings."""

import numpy as np
import numpy.typing as npt
from scipy.stats import skew

Rows = npt.NDArray[np.floating]

NEIGHBOURS = 10
"""Number of nearest neighbours that count for hubness."""
CHUNK = 1024
"""Number of rows that are compared with all others at a time."""


def alignment(anchors: Rows, positives: Rows) -> float:
    """Return the mean squared distance of positive pairs (Wang and Isola, 2020).

    It is between 0, if the embeddings of each pair are equal, and 4.

    Args:
        anchors: unit vectors `(pairs, dimension)`.
        positives: unit vectors `(pairs, dimension)`.
    """
    return float(np.square(anchors.astype(np.float64) - positives).sum(1).mean())


def uniformity(rows: Rows) -> float:
    """Return `log mean exp(-2 |u - v|^2)` over different rows (Wang and Isola, 2020).

    It is 0 if all rows are equal, and lower if they are spread more evenly over the sphere. The
    cost grows with the square of the number of rows, so pass a sample.

    Args:
        rows: unit vectors `(rows, dimension)`.
    """
    n = len(rows)
    total = 0.0
    for start in range(0, n, CHUNK):
        cosines = rows[start : start + CHUNK].astype(np.float64) @ rows.T
        total += np.exp(4 * (cosines - 1)).sum()
    return float(np.log((total - n) / (n * (n - 1))))


def hubness(rows: Rows, k: int = NEIGHBOURS) -> float:
    """Return the skewness of the k-occurrence (Radovanovic et al., 2010).

    The k-occurrence of a row is the number of other rows that have it among their k nearest
    neighbours. A skewness of 0 means that all rows occur equally often. Above 1, a few rows, the
    hubs, are near to everything. The cost grows with the square of the number of rows, so pass a
    sample.

    Args:
        rows: unit vectors `(rows, dimension)`.
        k: number of nearest neighbours.
    """
    k = min(k, len(rows) - 1)
    counts = np.zeros(len(rows), dtype=np.int64)
    for start in range(0, len(rows), CHUNK):
        cosines = rows[start : start + CHUNK] @ rows.T
        local = np.arange(len(cosines))
        cosines[local, start + local] = -np.inf  # a row is not its own neighbour
        nearest = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        counts += np.bincount(nearest.ravel(), minlength=len(rows))
    return float(skew(counts)) if counts.std() > 0 else 0.0
