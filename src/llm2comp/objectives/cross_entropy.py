"""The cross-entropy of tokens given memory, shared by reconstruction and continuation."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from llm2comp.compressor import Compressor
from llm2comp.objectives.rows import mean_over_samples, sum_over_chunks


def tokens_given_memory(
    compressor: Compressor, memory: Tensor, ids: Tensor, mask: Tensor
) -> Tensor:
    """Return the mean over tokens, then over samples, of ``-log p(token | memory, tokens before)``.

    Args:
        compressor: holds the frozen decoder.
        memory: ``(batch, m, hidden)``.
        ids: ``(batch, length)``, the tokens to predict, right-padded.
        mask: ``(batch, length)``, true where a token is.
    """
    # The state at a position predicts the token after it, and none is after the last.
    nothing = torch.zeros_like(mask[:, :1])
    states = compressor.continue_from(memory, ids, torch.cat([mask, nothing], dim=1))

    def loss(states: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
        return (cross_entropy(compressor.logits(states), tokens, reduction="none") * weights).sum()

    return sum_over_chunks(loss, states, ids[mask], mean_over_samples(mask))
