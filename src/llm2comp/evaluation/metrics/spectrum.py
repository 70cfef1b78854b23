"""Singular values of embeddings and measures that follow from them.

They are computed from sums over the rows, which are added up chunk by chunk. So memory is that of a
`(dimension, dimension)` matrix, whatever the number of rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.floating]

SHARES = (0.90, 0.99)
"""Shares of the variance; the principal components that hold each share are counted."""
ROGUE = 3
"""Number of dimensions that are listed with their share of the mean cosine."""


@dataclass(frozen=True)
class RowSums:
    """Sums over rows.

    Attributes:
        n: number of rows.
        total: sum of the rows, `(dimension,)`.
        products: sum of the outer products of the rows, `(dimension, dimension)`.
    """

    n: int
    total: Floats
    products: Floats

    @classmethod
    def of(cls, chunks: Iterable[Rows]) -> "RowSums":
        """Add up chunks of rows, each `(n, dimension)`.

        The sums are in float64, because rounding in float32 would look like more directions.
        """
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
    """How many directions the embeddings use.

    Attributes:
        singular_values: singular values of the matrix of embeddings, which is not centred, in
            descending order.
        rankme: exp of the entropy of the singular values divided by their sum (RankMe, Garrido
            et al., 2023, formula 1).
        participation_ratio: `(sum l)^2 / sum l^2` over the eigenvalues l of the covariance (Gao
            et al., 2017).
        components_90: number of principal components that hold 90 % of the variance.
        components_99: number of principal components that hold 99 % of the variance.
        mean_cosine: mean cosine between two different rows (Ethayarajh, 2019).
        top_share: share of the first singular value, squared, in the sum of all, squared. It is
            near 1 if all embeddings point in one direction.
        rogue: the dimensions with the largest shares of the mean cosine, with these shares (Timkey
            and van Schijndel, 2021); empty if the mean cosine is zero.
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
    """Return the spectrum of rows.

    Args:
        sums: sums over the rows. `mean_cosine` and `rogue` are right for unit vectors only.
    """
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
    """Return the entropy, in nats, of non-negative values divided by their sum."""
    shares = values[values > 0] / values.sum()
    return float(-(shares * np.log(shares)).sum())


def participation_ratio(eigenvalues: Floats) -> float:
    """Return `(sum l)^2 / sum l^2`, or 0 if there is no variance."""
    total = eigenvalues.sum()
    return float(total**2 / np.square(eigenvalues).sum()) if total > 0 else 0.0


def _eigenvalues(matrix: Floats, scale: float, n: int) -> Floats:
    """Return the eigenvalues of a positive semidefinite matrix in descending order.

    Eigenvalues below the rounding error are set to zero, because their roots would otherwise count
    as directions. The error is estimated for sums over `n` rows in matrices of trace `scale`.
    """
    eigenvalues = np.asarray(np.linalg.eigvalsh(matrix)[::-1], dtype=np.float64)
    rounding = max(n, len(eigenvalues)) * np.finfo(np.float64).eps * scale
    return np.where(eigenvalues > rounding, eigenvalues, 0.0)


def _components(variances: Floats, share: float) -> int:
    """Return the number of components that hold a share of the variance."""
    total = variances.sum()
    if total == 0:
        return 0
    reached = np.cumsum(variances) / total
    return int(np.searchsorted(reached, share - 1e-9) + 1)


def _contributions(sums: RowSums) -> Floats:
    """Return the part of each dimension in the mean cosine between different unit vectors."""
    if sums.n < 2:
        return np.zeros(len(sums.total))
    return (np.square(sums.total) - np.diagonal(sums.products)) / (sums.n * (sums.n - 1))


def _rogue(contributions: Floats) -> dict[int, float]:
    """Return the dimensions with the largest shares of the mean cosine, and these shares."""
    mean_cosine = contributions.sum()
    if abs(mean_cosine) < 1e-6:
        return {}
    largest = np.argsort(-np.abs(contributions))[:ROGUE]
    return {int(i): float(contributions[i] / mean_cosine) for i in largest}
