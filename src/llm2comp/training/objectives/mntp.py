"""MNTP, the pretext of LLM2Vec: masked next-token prediction (BehnamGhader et al., 2024)."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from llm2comp.errors import UserError
from llm2comp.model.compressor import Compressor
from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.chunked_loss import sum_over_chunks
from llm2comp.training.objectives.objective import Objective

MASK_TOKEN = "_"
MASK_PROBABILITY = 0.2


class MaskedNextTokenPrediction(Objective):
    """The cross-entropy of masked tokens, each predicted from the output one position before.

    The model reads the whole passage `BOS n_1 … n_L`, in which about every fifth token is replaced
    by `_`. All drawn tokens are replaced; BERT leaves or swaps some. The loss is the mean over the
    masked tokens of a batch. The encoder has no memory tokens: the embedding is the mean over the
    text's own tokens.

    Args:
        mask_id: token id that replaces a masked token.
    """

    prompt_format = "text"
    bidirectional = True

    def __init__(self, mask_id: int) -> None:
        self.mask_id = mask_id

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Look up the mask token.

        Raises:
            UserError: if the tokenizer does not have it.
        """
        vocabulary = tokenizer.get_vocab()
        if MASK_TOKEN not in vocabulary:
            raise UserError(
                f"objective mntp masks with the token {MASK_TOKEN!r}, which the backbone's "
                "tokenizer does not have; choose another objective"
            )
        return cls(vocabulary[MASK_TOKEN])

    def loss(self, compressor: Compressor, batch: Batch) -> Tensor:
        """Return the loss in nats per masked token."""
        masked = draw_masked(batch.passage_mask)
        corrupted = batch.passage_ids.masked_fill(masked, self.mask_id)
        states = compressor.encode(corrupted, batch.passage_mask.long())
        states_before = states[:, :-1][masked[:, 1:]]

        def loss(states: Tensor, tokens: Tensor) -> Tensor:
            return cross_entropy(compressor.logits(states), tokens, reduction="sum")

        return sum_over_chunks(loss, states_before, batch.passage_ids[masked]) / masked.sum()

    def pooled(self, compressor: Compressor, batch: Batch) -> Sequence[Tensor]:
        """Return the outputs at each text's own tokens, of which none is masked."""
        states = compressor.encode(batch.input_ids, batch.attention_mask)
        texts = states[:, states.shape[1] - batch.text_mask.shape[1] :]  # behind BOS
        return [text[mask] for text, mask in zip(texts, batch.text_mask, strict=True)]


def draw_masked(present: Tensor) -> Tensor:
    """Draw which tokens to mask.

    Each token is masked with probability 0.2, at least one per passage, and BOS never.

    Args:
        present: `(batch, length)`, true where a token is. The first token of a row is BOS.

    Returns:
        `(batch, length)`, true where a token is to be masked.
    """
    # The CPU draws, because the Trainer's checkpoints keep the state of the CPU's generator.
    noise = torch.rand(present.shape).to(present.device)
    noise = noise.masked_fill(~present, 1.0)
    noise[:, 0] = 1.0
    least = noise.amin(dim=1, keepdim=True)
    return noise <= least.clamp(min=MASK_PROBABILITY)
