"""A sentence-transformers model that makes its batches of equal cost, by tokens."""

import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from sentence_transformers import SentenceTransformer

import llm2comp.model.attention  # noqa: F401 (by which a model that was sent to a process attends)
from llm2comp.data.length_batching import batch_by_tokens
from llm2comp.inference.worker_pool import Workers

TOKENS_PER_TEXT = 64
"""Of a text as ``batch_size`` counts it: 32 of them are 2,048 tokens, what a processor's cache
holds best (docs/performance.md)."""
WINDOW = 1024
"""Texts whose tokens are counted at once."""
WIDTHS = 16
"""Batches are padded to one of so many widths between a power of two and the next. For each size
of product a processor's library makes kernels and keeps them (docs/performance.md)."""


class TokenBatched(SentenceTransformer):
    """A model whose ``encode`` sorts texts by tokens and lets a batch have as many as fit.

    ``batch_size`` is in texts of 64 tokens: a batch has fewer longer texts, or more shorter
    ones. The stock model sorts by characters and takes ``batch_size`` texts whatever their
    length. Embeddings are the same.
    """

    tokens_per_text = TOKENS_PER_TEXT

    def encode(self, inputs: Any, *args: Any, **options: Any) -> Any:
        """Return what the stock model's ``encode`` does, whose arguments these are.

        ``pool`` may also be :class:`llm2comp.workers.Workers`, which then compute the batches,
        and vectors are float32.
        """
        pool = options.pop("pool") if isinstance(options.get("pool"), Workers) else None
        if args or not self._plain(inputs, options):
            return super().encode(inputs, *args, **options)
        each: Callable[..., Iterator[Any]] = pool.map if pool else self._map
        done = pool.on_batch if pool else lambda _: None
        budget = options.pop("batch_size", 32) * self.tokens_per_text
        tensors = options.pop("convert_to_tensor", False)
        arrays = options.pop("convert_to_numpy", True) and not tensors
        hidden = not options.pop("show_progress_bar", False)
        windows = [inputs[start : start + WINDOW] for start in range(0, len(inputs), WINDOW)]
        counts = np.concatenate(list(each(_count, windows)))
        batches = list(batch_by_tokens(np.array([self._width(n) for n in counts.tolist()]), budget))
        # Else the longest came first, and a bar's rate and time left would tell of them alone.
        random.Random(0).shuffle(batches)
        embed = partial(_embed, arrays=arrays or pool is not None, options=options)
        found = each(embed, ([inputs[row] for row in rows] for rows in batches))
        whole = torch.empty(0)
        for rows in track(batches, "Batches", disable=hidden):
            vectors = torch.as_tensor(next(found))
            if len(whole) == 0:
                whole = vectors.new_empty(len(inputs), vectors.shape[1])
            whole[rows] = vectors
            done(len(rows))
        if arrays:
            return whole.numpy()
        return whole if tensors else list(whole)

    def preprocess(self, inputs: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """Return what the stock model's ``preprocess`` does, texts padded to one of few widths."""
        features: dict[str, Any] = super().preprocess(inputs, *args, **options)
        if "input_ids" not in features or "attention_mask" not in features:
            return features
        texts = {
            name: features[name] for name in self.tokenizer.model_input_names if name in features
        }
        width = self._width(features["input_ids"].shape[1])
        padded = self.tokenizer.pad(
            texts, padding="max_length", max_length=width, return_tensors="pt"
        )
        return {**features, **padded}

    def _width(self, tokens: int) -> int:
        """Return the width of a batch whose longest text has so many tokens."""
        step = max(1, 2 ** (tokens - 1).bit_length() // (2 * WIDTHS))
        width = -(-tokens // step) * step
        # Of texts that are cut at the longest that a model reads there are many.
        longest = self.max_seq_length
        return longest if longest is not None and tokens <= longest < width else width

    def _map(self, call: Callable[[Any, Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return map(partial(call, self), items)

    def _plain(self, inputs: Any, options: dict[str, Any]) -> bool:
        """Whether these are texts, to be turned into vectors by this process."""
        return (
            isinstance(inputs, list)
            and len(inputs) > 0
            and all(isinstance(text, str) for text in inputs)
            and options.get("output_value", "sentence_embedding") == "sentence_embedding"
            and options.get("precision") in (None, "float32")
            and options.get("batch_size", 32) > 0
            and options.get("pool") is None
            and not isinstance(options.get("device"), list)
            and getattr(self[0], "tokenizer", None) is not None
        )


def _count(model: SentenceTransformer, texts: list[str]) -> NDArray[np.int64]:
    """Count what the model reads of each text, prompts of a call apart.

    They are tokenised a second time to be embedded; it takes 0.3 % of the time with
    SmolLM2-135M.
    """
    mask = model.preprocess(texts)["attention_mask"]
    # A text may be several rows, as many texts are one prompt's.
    counts: NDArray[np.int64] = mask.sum(1).view(-1, len(texts)).sum(0).numpy()
    return counts


def _embed(
    model: SentenceTransformer, texts: list[str], *, arrays: bool, options: dict[str, Any]
) -> Any:
    """Return the vectors of one batch."""
    return SentenceTransformer.encode(
        model,
        texts,
        batch_size=len(texts),
        convert_to_numpy=arrays,
        convert_to_tensor=not arrays,
        show_progress_bar=False,
        **options,
    )
