"""EBAE and EBAR, the pretext of Llama2Vec: embeddings predict tokens (LLARA, Liu et al., 2024)."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llm2comp.model.compressor import Compressor
from llm2comp.model.prompt_format import PROMPT_FORMATS
from llm2comp.recipe import Pretext
from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.chunked_loss import CHUNK, sum_over_chunks
from llm2comp.training.objectives.objective import Objective

BEFORE, SUMMARIZE = PROMPT_FORMATS["summarize"].before, PROMPT_FORMATS["summarize"].after
"""EBAE's prompt, in front of a text and behind it."""
PREDICT = '", predict the following passage within eight words: '
"""EBAR's prompt behind a text."""


class EmbeddingPrediction(Objective):
    """The mean of EBAE and EBAR, in which an embedding predicts tokens through the LM head.

    A prompt and k special tokens follow the text. The special tokens are memory tokens here. For
    each token of the vocabulary, the largest of its k logits is taken, and these make one
    distribution. The loss is the mean negative log-probability over the *set* of target tokens:

    - EBAE: the tokens of the text itself, after the summarize prompt.
    - EBAR: the tokens of the continuation, after the predict prompt and k other special tokens.

    The encoder reads every text as EBAE does, and its embedding is the mean over EBAE's k special
    tokens. There are two differences from LLARA. It encodes queries with EBAR's prompt. Its
    released code also adds a next-token loss on the text and divides EBAE and EBAR by ten, which
    its paper's formula does not have.

    Args:
        before: token ids between BOS and a text.
        summarize: token ids between a text and EBAE's special tokens.
        predict: token ids between a text and EBAR's special tokens.
    """

    prompt_format = "summarize"

    def __init__(self, before: list[int], summarize: list[int], predict: list[int]) -> None:
        self.before = before
        self.summarize = summarize
        self.predict = predict

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, stage: Pretext) -> Self:  # noqa: ARG003
        """Tokenize the prompts."""
        return cls(
            *(
                # The tokenizer itself would put the prompt format around a prompt.
                tokenizer.backend_tokenizer.encode(prompt, add_special_tokens=False).ids
                for prompt in (BEFORE, SUMMARIZE, PREDICT)
            )
        )

    def loss(self, compressor: Compressor, batch: Batch) -> Tensor:
        """Return the loss in nats per target token."""
        # The first half of the memory embeddings are the extra tokens, which only EBAR uses.
        extra = compressor.memory_ids[: compressor.num_memory_embeddings // 2]
        reconstructed = self._bag_of_tokens(
            compressor, self._summary(compressor, batch), batch.text_ids, batch.text_mask
        )
        predicted = self._bag_of_tokens(
            compressor,
            self._memory(compressor, batch, [*self.predict, *extra]),
            batch.continuation_ids,
            batch.continuation_mask,
        )
        return (reconstructed + predicted) / 2

    def pooled(self, compressor: Compressor, batch: Batch) -> Sequence[Tensor]:
        """Return the outputs at EBAE's special tokens."""
        return self._summary(compressor, batch).unbind()

    def _summary(self, compressor: Compressor, batch: Batch) -> Tensor:
        """Return the outputs `(batch, k, hidden)` at EBAE's special tokens."""
        special = compressor.memory_ids[compressor.num_memory_embeddings // 2 :]
        return self._memory(compressor, batch, [*self.summarize, *special])

    def _memory(self, compressor: Compressor, batch: Batch, after: list[int]) -> Tensor:
        """Return the outputs `(batch, k, hidden)` at the k special tokens that end `after`."""
        bos = [] if compressor.bos_id is None else [compressor.bos_id]
        input_ids, present = put_around(
            batch.text_ids, batch.text_mask, [*bos, *self.before], after
        )
        return compressor.compress(input_ids, present.long())

    def _bag_of_tokens(
        self, compressor: Compressor, memory: Tensor, ids: Tensor, mask: Tensor
    ) -> Tensor:
        """Return the mean negative log-probability of the set of tokens of each row."""
        targets, weights = token_sets(ids, mask)

        def loss(memory: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
            logits = compressor.logits(memory.flatten(0, 1)).view(*memory.shape[:2], -1)
            log_probabilities = logits.amax(1).log_softmax(-1)
            return -(log_probabilities.gather(1, targets) * weights).sum()

        size = max(1, CHUNK // memory.shape[1])
        total = sum_over_chunks(loss, memory, targets, weights, size=size)
        return total / len(memory)


def put_around(
    ids: Tensor, mask: Tensor, before: list[int], after: list[int]
) -> tuple[Tensor, Tensor]:
    """Put token ids in front of and behind each text of a right-padded batch.

    Args:
        ids: `(batch, length)`.
        mask: `(batch, length)`, true where a token is.
        before: token ids in front of each text.
        after: token ids behind the last token of each text.

    Returns:
        Ids and mask, `(batch, len(before) + length + len(after))`, right-padded.
    """
    front, behind = (ids.new_tensor(part).expand(len(ids), -1) for part in (before, after))
    around = torch.cat([front, ids, torch.zeros_like(behind)], dim=1)
    ends = len(before) + mask.sum(1, keepdim=True)
    positions = torch.arange(around.shape[1], device=ids.device)
    around = around.scatter(1, ends + positions[: len(after)], behind)
    return around, positions < ends + len(after)


def token_sets(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the set of tokens of each row, with weights that average over it.

    Args:
        ids: `(batch, length)`.
        mask: `(batch, length)`, true where a token is.

    Returns:
        Ids and weights, both `(batch, length)`. The first occurrence of each token of a row has
        the weight 1 / (number of different tokens in the row). All other positions have 0.
    """
    ordered = ids.masked_fill(~mask, -1).sort(dim=1).values
    first = torch.ones_like(mask)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first &= ordered >= 0
    return ordered.clamp(min=0), first / first.sum(1, keepdim=True)
