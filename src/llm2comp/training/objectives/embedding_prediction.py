"""EBAE and EBAR, the pretext of Llama2Vec (LLARA; Liu et al., 2024): embeddings predict tokens."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llm2comp.model.compressor import Compressor
from llm2comp.model.prompt_format import PROMPT_FORMATS
from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.chunked_loss import CHUNK, sum_over_chunks
from llm2comp.training.objectives.objective import Objective

BEFORE, SUMMARIZE = PROMPT_FORMATS["summarize"].before, PROMPT_FORMATS["summarize"].after
PREDICT = '", predict the following passage within eight words: '


class EmbeddingPrediction(Objective):
    """Mean of EBAE and EBAR: through the LM head, an embedding names the tokens of a text.

    Behind a text stands a prompt with k special tokens (memory rows here). The
    largest of their k logits for each token of the vocabulary make one
    distribution, and the loss is its mean negative log-probability over the
    *set* of target tokens: those of the text itself after the summarize prompt
    (EBAE), those of its continuation after the predict prompt, which has k
    special tokens of its own (EBAR).

    The encoder puts every text as EBAE does and takes the mean over its k
    special tokens; LLARA encodes queries with EBAR's prompt. LLARA's released
    code also adds a next-token loss on the text and divides these two by ten;
    neither is in its paper's formula, and neither is here.

    Args:
        before: token ids in front of a text, behind BOS.
        summarize: token ids between a text and EBAE's special tokens.
        predict: token ids between a text and EBAR's special tokens.
    """

    prompt_format = "summarize"

    def __init__(self, before: list[int], summarize: list[int], predict: list[int]) -> None:
        self.before = before
        self.summarize = summarize
        self.predict = predict

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Tokenize the prompts."""
        return cls(
            *(
                # Not by the tokenizer itself: it would put the form around them.
                tokenizer.backend_tokenizer.encode(prompt, add_special_tokens=False).ids
                for prompt in (BEFORE, SUMMARIZE, PREDICT)
            )
        )

    def loss(self, compressor: Compressor, batch: Batch) -> Tensor:
        """Return the loss in nats per target token."""
        spare = compressor.memory_ids[: compressor.num_memory_embeddings // 2]
        reconstructed = self._bag_of_tokens(
            compressor, self._summary(compressor, batch), batch.text_ids, batch.text_mask
        )
        predicted = self._bag_of_tokens(
            compressor,
            self._memory(compressor, batch, [*self.predict, *spare]),
            batch.continuation_ids,
            batch.continuation_mask,
        )
        return (reconstructed + predicted) / 2

    def pooled(self, compressor: Compressor, batch: Batch) -> Sequence[Tensor]:
        """Return the outputs at EBAE's special tokens."""
        return self._summary(compressor, batch).unbind()

    def _summary(self, compressor: Compressor, batch: Batch) -> Tensor:
        read = compressor.memory_ids[compressor.num_memory_embeddings // 2 :]
        return self._memory(compressor, batch, [*self.summarize, *read])

    def _memory(self, compressor: Compressor, batch: Batch, after: list[int]) -> Tensor:
        bos = [] if compressor.bos_id is None else [compressor.bos_id]
        input_ids, present = put_around(
            batch.text_ids, batch.text_mask, [*bos, *self.before], after
        )
        return compressor.compress(input_ids, present.long())

    def _bag_of_tokens(
        self, compressor: Compressor, memory: Tensor, ids: Tensor, mask: Tensor
    ) -> Tensor:
        targets, weights = token_sets(ids, mask)

        def loss(memory: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
            logits = compressor.logits(memory.flatten(0, 1)).view(*memory.shape[:2], -1)
            log_probabilities = logits.amax(1).log_softmax(-1)
            return -(log_probabilities.gather(1, targets) * weights).sum()

        at_once = max(1, CHUNK // memory.shape[1])
        total = sum_over_chunks(loss, memory, targets, weights, size=at_once)
        return total / len(memory)


def put_around(
    ids: Tensor, mask: Tensor, before: list[int], after: list[int]
) -> tuple[Tensor, Tensor]:
    """Put token ids in front of and behind each text of a right-padded batch.

    Args:
        ids: ``(batch, length)``.
        mask: ``(batch, length)``, true where a token is.
        before: put in front.
        after: put behind the last token of each text.

    Returns:
        Ids and mask, ``(batch, len(before) + length + len(after))``, right-padded.
    """
    front, behind = (ids.new_tensor(part).expand(len(ids), -1) for part in (before, after))
    longest = torch.cat([front, ids, torch.zeros_like(behind)], dim=1)
    ends = len(before) + mask.sum(1, keepdim=True)
    places = torch.arange(longest.shape[1], device=ids.device)
    longest = longest.scatter(1, ends + places[: len(after)], behind)
    return longest, places < ends + len(after)


def token_sets(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's different tokens, and weights that average over them.

    Args:
        ids: ``(batch, length)``.
        mask: ``(batch, length)``, true where a token is.

    Returns:
        Ids ``(batch, length)`` and weights of the same shape: of every token
        that occurs n times in a row one has the weight 1 / (different tokens of
        the row), the others and the padding 0.
    """
    ordered = ids.masked_fill(~mask, -1).sort(dim=1).values
    first = torch.ones_like(mask)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first &= ordered >= 0
    return ordered.clamp(min=0), first / first.sum(1, keepdim=True)
