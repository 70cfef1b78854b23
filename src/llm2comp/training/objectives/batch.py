"""The input of an objective: passages cut into text and continuation, as padded tensors."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llm2comp.training.distributed.shares import Share


@dataclass
class Batch:
    """A batch of passages `n_1 … n_L`.

    Each passage is cut after its own number of tokens a: the text is `n_1 … n_a`, and the
    continuation is `n_{a+1} … n_L`. An objective that reads the whole passage has a = L, and no
    continuation. All tensors are right-padded.

    Attributes:
        input_ids: `(batch, 1 + a + k)`, the tokens `BOS n_1 … n_a m_1 … m_k`, where m are the
            memory tokens.
        attention_mask: `(batch, 1 + a + k)`, 1 where `input_ids` has a token.
        passage_ids: `(batch, 1 + L)`, the tokens `BOS n_1 … n_L`.
        passage_mask: `(batch, 1 + L)`, true where a token is.
        teacher_targets: `(batch, 1 + L)`, true at `n_a … n_L`.
        text_ids: `(batch, a)`, the tokens `n_1 … n_a`.
        text_mask: `(batch, a)`, true where a token is.
        continuation_ids: `(batch, L - a)`, the tokens `n_{a+1} … n_L`.
        continuation_mask: `(batch, L - a)`, true where a token is.
        share: if several processes train together, what this one has of their batch.
    """

    input_ids: Tensor
    attention_mask: Tensor
    passage_ids: Tensor
    passage_mask: Tensor
    teacher_targets: Tensor
    text_ids: Tensor
    text_mask: Tensor
    continuation_ids: Tensor
    continuation_mask: Tensor
    share: Share | None = None

    @classmethod
    def of(
        cls,
        passages: list[list[int]],
        splits: list[int],
        *,
        memory_ids: list[int],
        bos_id: int | None,
        pad_id: int,
    ) -> "Batch":
        """Cut passages, and pad them.

        Args:
            passages: token ids, without special tokens.
            splits: for each passage, the number of tokens of its text.
            memory_ids: token ids of the memory tokens.
            bos_id: token id before every text, if the model has one.
            pad_id: token id of the padding.

        Raises:
            ValueError: if a split leaves no text, or is behind the end of its passage.
        """
        bos = [] if bos_id is None else [bos_id]
        for passage, a in zip(passages, splits, strict=True):
            if not 0 < a <= len(passage):
                raise ValueError(f"split {a} is not inside a passage of {len(passage)} tokens")
        texts = [p[:a] for p, a in zip(passages, splits, strict=True)]
        continuations = [p[a:] for p, a in zip(passages, splits, strict=True)]
        input_ids, attention_mask = _pad([[*bos, *text, *memory_ids] for text in texts], pad_id)
        passage_ids, passage_mask = _pad([[*bos, *passage] for passage in passages], pad_id)
        text_ids, text_mask = _pad(texts, pad_id)
        continuation_ids, continuation_mask = _pad(continuations, pad_id)
        position = torch.arange(passage_ids.shape[1])
        last_of_text = torch.tensor(splits)[:, None] + len(bos) - 1
        return cls(
            input_ids=input_ids,
            attention_mask=attention_mask.long(),
            passage_ids=passage_ids,
            passage_mask=passage_mask,
            teacher_targets=passage_mask & (position >= last_of_text),
            text_ids=text_ids,
            text_mask=text_mask,
            continuation_ids=continuation_ids,
            continuation_mask=continuation_mask,
        )

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        moved: dict[str, Any] = {
            n: v.to(device) for n, v in vars(self).items() if isinstance(v, Tensor)
        }
        return replace(self, **moved)


def _pad(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    tensors = [torch.tensor(row) for row in rows]
    lengths = torch.tensor([len(row) for row in rows])
    padded = pad_sequence(tensors, batch_first=True, padding_value=pad_id)
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]
