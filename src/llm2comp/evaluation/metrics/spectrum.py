"""Singular values of embeddings and what follows from them, from sums alone.

No data matrix is decomposed: rows are added up chunk by chunk, so that memory
is that of a ``(dimension, dimension)`` matrix however many rows there are.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.floating]

SHARES = (0.90, 0.99)
"""Of the variance, whose number of components is counted."""
ROGUE = 3
"""Dimensions whose share of the mean cosine is listed."""


@dataclass(frozen=True)
class RowSums:
    """Sums over ``n`` rows, unit vectors as a rule.

    Attributes:
        n: number of rows.
        total: sum of the rows ``(dimension,)``.
        products: sum of their outer products ``(dimension, dimension)``.
    """

    n: int
    total: Floats
    products: Floats

    @classmethod
    def of(cls, chunks: Iterable[Rows]) -> "RowSums":
        """Add up chunks of rows ``(n, dimension)``, in float64: float32 would add directions."""
        n = 0
        total: Floats | float = 0.0
        products: Floats | float = 0.0
        for chunk in chunks:
            rows = chunk.astype(np.float64)
            n += len(rows)
            total = total + rows.sum(0)
            products = products + rows.T @ rows
        return cls(n, np.asarray(total), np.asarray(products))


@dataclass(frozen=True)
class Spectrum:
    """How many directions the vectors use.

    Attributes:
        singular_values: of the matrix of embeddings, not centred, falling.
        rankme: exp of the entropy of the singular values over their sum (RankMe, Garrido et al.,
            2023, formula 1).
        participation_ratio: of the eigenvalues l of the covariance, (sum l)^2 / sum l^2 (Gao
            et al., 2017).
        components_90: principal components that hold 90 % of the variance.
        components_99: the same for 99 %.
        mean_cosine: between two different rows (average similarity of Ethayarajh, 2019).
        top_share: of the squared singular values, what the first one holds: near 1 where all
            vectors point one way.
        rogue: dimensions with the largest share of the mean cosine, and their shares (Timkey and
            van Schijndel, 2021); empty if the mean cosine is zero.
    """

    singular_values: list[float]
    rankme: float
    participation_ratio: float
    components_90: int
    components_99: int
    mean_cosine: float
    top_share: float
    rogue: dict[int, float]


def spectrum(sums: RowSums) -> Spectrum:
    """Measure the rows behind sums; of unit vectors, for the cosines to be ones."""
    squares = _eigenvalues(sums.products, np.trace(sums.products), sums.n)
    singular = np.sqrt(squares)
    mean = sums.total / sums.n
    second = sums.products / sums.n
    variances = _eigenvalues(second - np.outer(mean, mean), np.trace(second), sums.n)
    components = [_components(variances, share) for share in SHARES]
    contributions = _contributions(sums)
    return Spectrum(
        singular_values=singular.tolist(),
        rankme=float(np.exp(entropy(singular))),
        participation_ratio=participation_ratio(variances),
        components_90=components[0],
        components_99=components[1],
        mean_cosine=float(contributions.sum()),
        top_share=float(squares[0] / squares.sum()),
        rogue=_rogue(contributions),
    )


def entropy(values: Floats) -> float:
    """Return the entropy, in nats, of non-negative values over their sum."""
    shares = values[values > 0] / values.sum()
    return float(-(shares * np.log(shares)).sum())


def participation_ratio(eigenvalues: Floats) -> float:
    """Return ``(sum l)^2 / sum l^2``; 0 where there is no variance."""
    total = eigenvalues.sum()
    return float(total**2 / np.square(eigenvalues).sum()) if total > 0 else 0.0


def _eigenvalues(matrix: Floats, scale: float, n: int) -> Floats:
    """Return the eigenvalues of a positive semidefinite matrix, falling.

    Those below the rounding of sums over ``n`` rows, of matrices of trace
    ``scale``, are zero: their roots would count as directions.
    """
    found = np.asarray(np.linalg.eigvalsh(matrix)[::-1], dtype=np.float64)
    rounding = max(n, len(found)) * np.finfo(np.float64).eps * scale
    return np.where(found > rounding, found, 0.0)


def _components(variances: Floats, share: float) -> int:
    total = variances.sum()
    if total == 0:
        return 0
    reached = np.cumsum(variances) / total
    return int(np.searchsorted(reached, share - 1e-9) + 1)


def _contributions(sums: RowSums) -> Floats:
    """Return each dimension's part of the mean cosine between different unit vectors."""
    if sums.n < 2:
        return np.zeros(len(sums.total))
    return (np.square(sums.total) - np.diagonal(sums.products)) / (sums.n * (sums.n - 1))


def _rogue(contributions: Floats) -> dict[int, float]:
    whole = contributions.sum()
    if abs(whole) < 1e-6:
        return {}
    order = np.argsort(-np.abs(contributions))[:ROGUE]
    return {int(place): float(contributions[place] / whole) for place in order}
