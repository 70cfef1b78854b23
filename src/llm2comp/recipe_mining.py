"""The keys of a recipe for mining hard negatives, which `llm2comp mine` has as options."""

from typing import Annotated

from pydantic import Field, model_validator

from llm2comp.utils.yaml_files import Strict

Rank = Annotated[int, Field(ge=0)]
Margin = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class HardNegatives(Strict):
    """Which texts of a corpus are hard negatives of a query.

    Texts are ranked by their score, which is the cosine with the query unless a reranker gives
    another. The positives of a query are left out, and then the texts that score too high. What is
    left is ranked from 0, and the first texts from the rank `ranks[0]` on are the negatives.
    """

    negatives: Annotated[int, Field(ge=1, le=1000)] = 1
    """Negatives of each pair."""
    ranks: Annotated[list[Rank], Field(min_length=2, max_length=2)] | None = None
    """The first rank that is taken, and the first that is not. The first ranks may hold answers
    that nobody labelled. `null` begins at rank 0."""
    relative_margin: Margin = 0.05
    """Leave out texts whose score is above that of the positive less this share of it, as
    NV-Retriever does (arXiv 2407.15831). Of several positives, that with the lowest score counts.
    """
    absolute_margin: Margin = 0.0
    """Leave out texts whose score is above that of the positive less this."""

    @model_validator(mode="after")
    def _check_ranks(self) -> "HardNegatives":
        if self.ranks is not None and self.ranks[1] - self.ranks[0] < self.negatives:
            raise ValueError(
                f"ranks {self.ranks} leave {max(0, self.ranks[1] - self.ranks[0])} texts for "
                f"{self.negatives} negatives; give a wider range"
            )
        return self
