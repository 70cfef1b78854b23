"""A sentence-transformers model that makes its batches of equal cost, by tokens."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from sentence_transformers import SentenceTransformer

TOKENS_A_TEXT = 64
"""Of a text as ``batch_size`` counts it: 32 of them are 2,048 tokens, what a processor's cache
holds best (docs/performance.md)."""
WINDOW = 1024
"""Texts whose tokens are counted at once."""


class TokenBatched(SentenceTransformer):
    """A model whose ``encode`` sorts texts by tokens and lets a batch have as many as fit.

    ``batch_size`` is in texts of 64 tokens: a batch has fewer longer texts, or more shorter
    ones. The stock model sorts by characters and takes ``batch_size`` texts whatever their
    length. Vectors are the same.
    """

    def encode(self, inputs: Any, *args: Any, **options: Any) -> Any:
        """Return what the stock model's ``encode`` does, whose arguments these are."""
        if args or not self._plain(inputs, options):
            return super().encode(inputs, *args, **options)
        budget = options.pop("batch_size", 32) * TOKENS_A_TEXT
        tensors = options.pop("convert_to_tensor", False)
        arrays = options.pop("convert_to_numpy", True) and not tensors
        hidden = not options.pop("show_progress_bar", False)
        vectors: list[torch.Tensor] = []
        order: list[int] = []
        batches = list(batched(self._tokens(inputs), budget))
        for rows in track(batches, "Batches", disable=hidden):
            texts = [inputs[row] for row in rows]
            found = super().encode(
                texts,
                batch_size=len(texts),
                convert_to_tensor=True,
                show_progress_bar=False,
                **options,
            )
            vectors.extend(found.cpu() if arrays else found)
            order.extend(rows)
        whole = torch.stack([vectors[place] for place in np.argsort(order)])
        if arrays:
            return whole.float().numpy()
        return whole if tensors else list(whole)

    def _plain(self, inputs: Any, options: dict[str, Any]) -> bool:
        """Whether these are texts, to be turned into vectors by this process."""
        return (
            isinstance(inputs, list)
            and len(inputs) > 1
            and all(isinstance(text, str) for text in inputs)
            and options.get("output_value", "sentence_embedding") == "sentence_embedding"
            and options.get("precision") in (None, "float32")
            and options.get("batch_size", 32) > 0
            and options.get("pool") is None
            and not isinstance(options.get("device"), list)
            and getattr(self[0], "tokenizer", None) is not None
        )

    def _tokens(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Count what the model reads of each text, prompts of a call apart."""
        counts: list[NDArray[np.int64]] = []
        for start in range(0, len(texts), WINDOW):
            window = list(texts[start : start + WINDOW])
            mask = self.preprocess(window)["attention_mask"]
            # A text may be several rows, as many texts are one prompt's.
            counts.append(mask.sum(1).view(-1, len(window)).sum(0).numpy())
        return np.concatenate(counts)


def batched(tokens: NDArray[np.int64], budget: int) -> Iterator[list[int]]:
    """Yield the rows of batches, the longest texts first, each padded to its first.

    Args:
        tokens: of each text.
        budget: tokens of a batch, padding included; a longer text is a batch of its own.
    """
    rows: list[int] = []
    for row in np.argsort(-tokens, kind="stable"):
        if rows and (len(rows) + 1) * tokens[rows[0]] > budget:
            yield rows
            rows = []
        rows.append(int(row))
    if rows:
        yield rows
