"""How many directions held-out vectors use, as every stage logs it."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from llm2comp.analysis.spectrum import Sums, spectrum


@dataclass(frozen=True)
class Directions:
    """How held-out vectors use their space; see :class:`llm2comp.analysis.spectrum.Spectrum`.

    Attributes:
        rankme: effective dimension, the mean's direction included.
        participation_ratio: effective dimension of the variance.
        text_cosine: mean cosine between texts.
    """

    rankme: float
    participation_ratio: float
    text_cosine: float

    @classmethod
    def of(cls, vectors: Tensor) -> "Directions":
        """Measure vectors ``(texts, hidden)`` of any length."""
        unit = normalize(vectors.float(), dim=-1).cpu().numpy()
        found = spectrum(Sums.of([unit]))
        return cls(found.rankme, found.participation_ratio, found.mean_cosine)
