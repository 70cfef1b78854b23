"""Cached losses (GradCache) whose mini-batches have a limited number of tokens."""

from collections.abc import Iterator, Sequence
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from torch import Tensor


class TokenLimitedInfoNCE(CachedMultipleNegativesRankingLoss):
    """The cached loss (GradCache), whose mini-batches have a limited number of tokens.

    Padding counts, because it takes memory too. `mini_batch_num_tokens` of sentence-transformers
    does not count it: a long text among many short ones would exceed the limit many times over.

    Args:
        model: the encoder.
        tokens: the most tokens of a mini-batch. A longer text is a mini-batch of its own.
        options: of the cached loss; `mini_batch_size` limits the rows of a mini-batch.
    """

    def __init__(self, model: SentenceTransformer, tokens: int, **options: Any) -> None:
        super().__init__(model, **options)
        self.tokens = tokens

    def embed_minibatch_iter(
        self, sentence_feature: dict[str, Tensor], *args: Any, **options: Any
    ) -> Iterator[tuple[Tensor, Any]]:
        """Yield the embeddings `(rows, dimension)` of each mini-batch, and its random state."""
        options["ranges"] = token_limited(sentence_feature, self.tokens, self.mini_batch_size)
        yield from super().embed_minibatch_iter(sentence_feature, *args, **options)


def token_limited(
    sentence_feature: dict[str, Tensor], tokens: int, rows: int
) -> list[tuple[int, int]]:
    """Return the first row of each mini-batch of a batch, and the row after its last one."""
    return list(_ranges(sentence_feature["attention_mask"].sum(1).tolist(), tokens, rows))


def _ranges(lengths: Sequence[int], tokens: int, rows: int) -> Iterator[tuple[int, int]]:
    begin, longest = 0, 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        if row > begin and ((row + 1 - begin) * longest > tokens or row - begin == rows):
            yield begin, row
            begin, longest = row, length
    yield begin, len(lengths)
