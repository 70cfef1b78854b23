"""A sentence-transformers model whose batches have similar numbers of tokens."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.util.decorators import deprecated_kwargs
from torch import Tensor

# Registers the attention, which a model needs when it is sent to a worker process.
import llm2comp.model.attention  # noqa: F401
from llm2comp.data.length_batching import batch_by_tokens
from llm2comp.errors import UserError
from llm2comp.inference.worker_pool import Workers
from llm2comp.utils.terminal import Terminal

TOKENS_PER_TEXT = 64
"""Tokens that `batch_size` counts as one text. By default a batch has 32 x 64 = 2,048 tokens, which
suits the cache of a processor best (docs/performance.md)."""
WINDOW = 1024
"""Texts that are tokenized together to count their tokens."""
WIDTHS = 16
"""Number of widths, between a power of two and the next, to which batches are padded. For each new
size of a matrix product a processor's library compiles kernels and keeps them, so few sizes keep
memory low (docs/performance.md)."""

Pool = dict[Literal["input", "output", "processes"], Any]
"""A pool of sentence-transformers, from `start_multi_process_pool`."""
Encoded = NDArray[Any] | Tensor | list[Tensor] | dict[str, Tensor] | list[dict[str, Tensor]]


class TokenBatched(SentenceTransformer):
    """A model whose `encode` fills each batch up to a number of tokens, longest texts together.

    The stock model sorts texts by characters and puts `batch_size` texts into every batch,
    whatever their length. Here `batch_size` is in texts of 64 tokens: a batch has fewer long texts
    or more short ones. The embeddings are the same.
    """

    tokens_per_text = TOKENS_PER_TEXT

    @deprecated_kwargs(sentences="inputs")
    def encode(  # type: ignore[override]  # the stock method has ten overloads
        self,
        inputs: Sequence[Any] | Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: Literal["sentence_embedding", "token_embeddings"] | None = (
            "sentence_embedding"
        ),
        precision: Literal["float32", "int8", "uint8", "binary", "ubinary"] = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | list[str | torch.device] | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: Pool | Workers | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> Encoded:
        """Return embeddings, as `SentenceTransformer.encode` does with the same arguments.

        Batches are filled by tokens where a list of texts becomes one float32 embedding per text,
        and neither `device` nor `pool` asks for processes of sentence-transformers. Everything
        else is left to the stock method.

        Args:
            inputs: texts, or whatever else the stock method takes.
            prompt_name: name of one of the model's prompts.
            prompt: text in front of every input; it overrides `prompt_name`.
            batch_size: texts of 64 tokens per batch.
            show_progress_bar: whether to show a bar on standard error.
            output_value: as in the stock method.
            precision: as in the stock method.
            convert_to_numpy: return an array `(texts, dimension)` and not a list of tensors.
            convert_to_tensor: return a tensor `(texts, dimension)`.
            device: as in the stock method.
            normalize_embeddings: whether to scale embeddings to unit length.
            truncate_dim: number of dimensions to keep.
            pool: a pool of sentence-transformers, or `llm2comp.inference.worker_pool.Workers`.
                Workers compute the batches, and their embeddings are float32.
            chunk_size: as in the stock method.
            kwargs: as in the stock method.

        Returns:
            As the stock method does.
        """
        options = dict(
            prompt_name=prompt_name,
            prompt=prompt,
            device=device,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            **kwargs,
        )
        workers = pool if isinstance(pool, Workers) else None
        by_tokens = (
            self.pads_texts
            and (output_value, precision) == ("sentence_embedding", "float32")
            and not isinstance(device, list)
            and (pool is None or workers is not None)
        )
        if not by_tokens or not _are_texts(inputs):
            return super().encode(
                inputs,
                batch_size=batch_size,
                show_progress_bar=show_progress_bar,
                output_value=output_value,
                precision=precision,
                convert_to_numpy=convert_to_numpy,
                convert_to_tensor=convert_to_tensor,
                pool=None if isinstance(pool, Workers) else pool,
                chunk_size=chunk_size,
                **options,
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size}.")
        arrays = convert_to_numpy and not convert_to_tensor
        embeddings = self._encode_texts(
            inputs,
            budget=batch_size * self.tokens_per_text,
            workers=workers,
            arrays=arrays,
            bar=bool(show_progress_bar),
            options=options,
        )
        if arrays:
            return embeddings.numpy()
        return embeddings if convert_to_tensor else list(embeddings)

    def preprocess(self, inputs: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """Tokenize inputs as the stock method does, and pad texts to one of few widths.

        Raises:
            UserError: if `max_seq_length` leaves no room for text. The tokenizer would then cut
                nothing.
        """
        if self.pads_texts and self.max_seq_length is not None:
            specials = self.tokenizer.num_special_tokens_to_add()
            if self.max_seq_length <= specials:
                raise UserError(
                    f"max_seq_length {self.max_seq_length} leaves no room for text: what surrounds "
                    f"a text takes {specials} tokens"
                )
        features: dict[str, Any] = super().preprocess(inputs, *args, **options)
        if not self.pads_texts or "input_ids" not in features:
            return features
        tokens = {
            name: features[name] for name in self.tokenizer.model_input_names if name in features
        }
        width = self._width(features["input_ids"].shape[1])
        padded = self.tokenizer.pad(
            tokens, padding="max_length", max_length=width, return_tensors="pt"
        )
        return {**features, **padded}

    @property
    def pads_texts(self) -> bool:
        """Whether the model pads texts to a batch; static and word embeddings do not."""
        first = self[0]
        return (
            isinstance(first, Transformer)
            and first.tokenizer is not None
            and not first.can_flatten_inputs
        )

    def _width(self, tokens: int) -> int:
        """Return the width of a batch whose longest text has this number of tokens."""
        step = max(1, 2 ** (tokens - 1).bit_length() // (2 * WIDTHS))
        width = -(-tokens // step) * step
        # Many texts are truncated to the model's maximum length; they need no padding.
        longest = self.max_seq_length
        return longest if longest is not None and tokens <= longest < width else width

    def _encode_texts(
        self,
        texts: list[str],
        *,
        budget: int,
        workers: Workers | None,
        arrays: bool,
        bar: bool,
        options: dict[str, Any],
    ) -> Tensor:
        """Return `(texts, dimension)`, computed in batches of at most `budget` tokens."""
        run: Callable[..., Iterator[Any]] = workers.map if workers else self._map
        windows = [texts[start : start + WINDOW] for start in range(0, len(texts), WINDOW)]
        counts = np.concatenate(list(run(count_tokens, windows)))
        widths = np.array([self._width(count) for count in counts.tolist()])
        batches = list(batch_by_tokens(widths, budget))
        # Shuffle the batches. Otherwise the longest would come first, and the progress bar would
        # underestimate the rate.
        random.Random(0).shuffle(batches)
        # Workers return arrays, because their tensors would come through shared memory.
        embed = partial(_embed_batch, arrays=arrays or workers is not None, options=options)
        results = run(embed, ([texts[row] for row in rows] for rows in batches))
        embeddings = torch.empty(0)
        console = Terminal(stderr=True)
        for rows in track(batches, "Batches", disable=not bar, console=console):
            batch = torch.as_tensor(next(results))
            if len(embeddings) == 0:
                embeddings = batch.new_empty(len(texts), batch.shape[1])
            embeddings[rows] = batch
            if workers:
                workers.on_batch(len(rows))
        return embeddings

    def _map(self, call: Callable[[Any, Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return map(partial(call, self), items)


# The name that sentence-transformers writes into cards and messages. A process that gets the model
# finds the class by its qualified name.
TokenBatched.__name__ = SentenceTransformer.__name__


def _are_texts(inputs: Any) -> TypeGuard[list[str]]:
    """Return whether inputs are a list of at least one text."""
    return (
        isinstance(inputs, list)
        and len(inputs) > 0
        and all(isinstance(text, str) for text in inputs)
    )


def count_tokens(
    model: SentenceTransformer, texts: list[str], prompt: str | None = None
) -> NDArray[np.int64]:
    """Return `(texts,)`, the tokens that the model reads of each text, those of a prompt included.

    The texts are tokenized again when they are embedded. With SmolLM2-135M the counting takes
    0.3 % of the time.
    """
    mask = model.preprocess(texts, prompt=prompt)["attention_mask"]
    # A baseline with several prompts reads each text once per prompt.
    counts: NDArray[np.int64] = mask.sum(1).view(-1, len(texts)).sum(0).numpy()
    return counts


def _embed_batch(
    model: SentenceTransformer, texts: list[str], *, arrays: bool, options: dict[str, Any]
) -> NDArray[np.float32] | Tensor:
    """Return `(texts, dimension)` of one batch, as the stock method computes it."""
    embeddings: NDArray[np.float32] | Tensor = SentenceTransformer.encode(
        model,
        texts,
        batch_size=len(texts),
        convert_to_numpy=arrays,
        convert_to_tensor=not arrays,
        show_progress_bar=False,
        **options,
    )
    return embeddings
