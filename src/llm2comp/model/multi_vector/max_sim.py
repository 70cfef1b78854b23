"""MaxSim of texts with k vectors each, given as rows of `k * dimension` numbers."""

from dataclasses import dataclass

from sentence_transformers.util.similarity import maxsim, maxsim_pairwise
from torch import Tensor


@dataclass(frozen=True)
class MaxSim:
    """The mean over the vectors of a query of the largest cosine with a vector of a document.

    That is the MaxSim of ColBERT (Khattab and Zaharia, 2020, arXiv 2004.12832) divided by the
    number of the query's vectors, which is k for every text. So the order of documents is the same,
    and scores are in [-1, 1] as cosines are.

    Args:
        k: vectors per text. They have unit length.
    """

    k: int

    def __call__(self, queries: Tensor, documents: Tensor) -> Tensor:
        """Return the scores `(queries, documents)` of all pairs."""
        return maxsim(self._split(queries), self._split(documents), length_normalize=True)

    def symmetric(self, ones: Tensor, others: Tensor) -> Tensor:
        """Return the mean of the scores in both directions `(pairs,)`, row by row.

        Neither of the texts is the query, for example in STS.
        """
        first, second = self._split(ones), self._split(others)
        there = maxsim_pairwise(first, second, length_normalize=True)
        back = maxsim_pairwise(second, first, length_normalize=True)
        return (there + back) / 2

    def _split(self, rows: Tensor) -> Tensor:
        return rows.reshape(len(rows), self.k, -1)
