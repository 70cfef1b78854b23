"""MNTP, the pretext of LLM2Vec: masked next-token prediction (BehnamGhader et al., 2024)."""

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from llm2comp.errors import UserError
from llm2comp.model.compressor import Compressor
from llm2comp.recipe import Pretext
from llm2comp.training.distributed import world
from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.chunked_loss import sum_over_chunks
from llm2comp.training.objectives.objective import Objective

BLANK = "_"
"""LLM2Vec's mask token for a tokenizer that has none of its own."""
REPLACED = {"bert": (0.8, 0.1), "all": (1.0, 0.0)}
"""Shares of the drawn tokens that become the mask token and a random token, by `masking`."""


class MaskedNextTokenPrediction(Objective):
    """The cross-entropy of drawn tokens, each predicted from the output one position before.

    The model reads the whole passage `BOS n_1 … n_L`, in which drawn tokens are masked as BERT or
    all of them (`pretext.masking` and `pretext.mask_probability`). Neither BOS nor padding is
    drawn. The loss is the mean over the drawn tokens of a batch, as in LLM2Vec. Without BOS no
    output comes before the first token, so it may be masked and is not predicted. The encoder has
    no memory tokens: the embedding is the mean over the text's own tokens.

    Args:
        collator: draws and masks tokens.
    """

    prompt_format = "text"
    bidirectional = True
    whole_passage = True

    def __init__(self, collator: DataCollatorForLanguageModeling) -> None:
        self.collator = collator

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, stage: Pretext) -> Self:
        """Return the objective with LLM2Vec's mask token.

        It is the tokenizer's own mask token, or else `_`, or else EOS.

        Raises:
            UserError: if the tokenizer has none of them.
        """
        blank = BLANK if BLANK in tokenizer.get_vocab() else None
        mask_token = tokenizer.mask_token or blank or tokenizer.eos_token
        if mask_token is None:
            raise UserError(
                f"objective mntp needs a mask token: the backbone's tokenizer has no mask token, "
                f"no {BLANK!r} and no EOS; choose another objective"
            )
        masking = copy.deepcopy(tokenizer)  # the encoder's tokenizer stays without a mask token
        masking.mask_token = mask_token
        as_mask, as_random = REPLACED[stage.masking]
        return cls(
            DataCollatorForLanguageModeling(
                masking,
                mlm_probability=stage.mask_probability,
                mask_replace_prob=as_mask,
                random_replace_prob=as_random,
            )
        )

    def loss(self, compressor: Compressor, batch: Batch) -> Tensor:
        """Return the loss in nats per drawn token."""
        fixed = ~batch.passage_mask
        if compressor.bos_id is not None:
            fixed[:, 0] = True
        masked_ids, drawn = self.mask(batch.passage_ids, fixed)
        states = compressor.encode(masked_ids, batch.passage_mask.long())
        predicted = drawn[:, 1:]

        def loss(states: Tensor, tokens: Tensor) -> Tensor:
            return cross_entropy(compressor.logits(states), tokens, reduction="sum")

        tokens = batch.passage_ids[:, 1:][predicted]
        total = sum_over_chunks(loss, states[:, :-1][predicted], tokens)
        count, rows = predicted.sum(), 1.0
        if batch.share is not None:  # the drawn tokens of all processes count the same
            count = world.total(count if batch.share.rows else torch.zeros_like(count))
            rows = max(batch.share.rows, 1) / batch.share.total
        # In a few short texts no token may be drawn.
        return total / (count.clamp(min=1) * rows)

    def mask(self, ids: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """Draw tokens, and mask them.

        Args:
            ids: `(batch, length)`.
            fixed: `(batch, length)`, true at tokens that are not to be drawn.

        Returns:
            `(batch, length)` each: the ids after masking, and true where a token was drawn.
        """
        # The CPU draws, because the Trainer's checkpoints keep the state of the CPU's generator.
        masked, labels = self.collator.torch_mask_tokens(ids.to("cpu", copy=True), fixed.cpu())
        return masked.to(ids.device), labels.ne(-100).to(ids.device)

    def pooled(self, compressor: Compressor, batch: Batch) -> Sequence[Tensor]:
        """Return the outputs at each text's own tokens, of which none is masked."""
        states = compressor.encode(batch.input_ids, batch.attention_mask)
        texts = states[:, states.shape[1] - batch.text_mask.shape[1] :]  # behind BOS
        return [text[mask] for text, mask in zip(texts, batch.text_mask, strict=True)]
