"""The memory tokens of one text: how alike they are, and what each one attends to."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import WordWeights
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2comp.evaluation.metrics.memory_tokens import measure
from llm2comp.inference.embed import embed, prompt_of
from llm2comp.inference.memory_states import collect_memory_states
from llm2comp.inference.token_batching import count_tokens
from llm2comp.model.modules import memory_weights
from llm2comp.utils.choices import Prompt

MOST_TOKENS = 2048
"""Longest text. One layer's attention weights of all heads take 150 MB then, with 9 heads."""


class NoMemoryViewError(Exception):
    """A model or a text whose memory tokens cannot be looked at.

    Args:
        message: what is wrong.
        remedy: what the client can do.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class MemoryView:
    """The memory tokens of one text.

    Attributes:
        tokens: all that the model reads, as text: of the prompt, the text, and its own.
        memory: places of the k memory tokens in `tokens`.
        cosines: `(k, k)`, between the states of the memory tokens before they are pooled.
        attention: `(k, tokens)`, what share of its attention a memory token gives to each token,
            averaged over heads and layers. Each row sums to 1.
    """

    tokens: list[str]
    memory: list[int]
    cosines: list[list[float]]
    attention: list[list[float]]


def memory_tokens(encoder: SentenceTransformer) -> int:
    """Return the number of memory tokens that an encoder pools over; 0 if it pools otherwise."""
    weights = memory_weights(encoder)
    return 0 if weights is None else int((weights.emb_layer.weight > 0).sum())


def look(encoder: SentenceTransformer, text: str, prompt: Prompt | None) -> MemoryView:
    """Embed a text, and return what its memory tokens were like meanwhile.

    Args:
        encoder: with memory tokens. Its attention is another one while this runs, so no other
            thread may use it.
        text: that is read as `llm2comp.inference.embed.embed` reads it.
        prompt: which prompt of the encoder is put before the text.

    Raises:
        NoMemoryViewError: if there are no memory tokens, the model shows no attention or is not
            finite, or the text is too long.
    """
    weights, body = memory_weights(encoder), getattr(encoder[0], "model", None)
    if weights is None:
        raise NoMemoryViewError(
            "this model has no memory tokens", "choose one whose memory_tokens at /v1/models is > 0"
        )
    if not isinstance(body, PreTrainedModel):
        raise NoMemoryViewError(
            "a compiled model does not show its attention", "serve the folder it was compiled from"
        )
    count = int(count_tokens(encoder, [text], prompt_of(encoder, prompt))[0])
    if count > MOST_TOKENS:
        raise NoMemoryViewError(
            f"the text has {count} tokens, and the most is {MOST_TOKENS}", "shorten it"
        )
    states: list[npt.NDArray[np.floating]] = []
    recorder = _Recorder(weights)
    with (
        collect_memory_states(encoder, states),
        _visible_attention(body),
        recorder.watch(encoder[0]),
    ):
        embed(encoder, [text], 1, prompt)
    if not recorder.shares:
        raise NoMemoryViewError("this model does not show its attention", "choose another model")
    if not np.isfinite(states[0]).all():
        raise NoMemoryViewError(
            "the states of the memory tokens are not finite",
            "start the server with --dtype float32, or choose another model",
        )
    return MemoryView(
        tokens=_as_text(encoder.tokenizer, recorder.ids),
        memory=recorder.is_memory.nonzero().flatten().tolist(),
        cosines=measure(states).cosines,
        attention=torch.stack(recorder.shares).mean(0).tolist(),
    )


@contextmanager
def _visible_attention(body: PreTrainedModel) -> Iterator[None]:
    """Let a model compute attention the slow way, which alone returns the attention weights."""
    usual = body.config._attn_implementation
    body.set_attn_implementation("eager")
    try:
        yield
    finally:
        body.set_attn_implementation(usual)


class _Recorder:
    """Keeps what memory tokens attend to, one layer after the other, so that memory stays low.

    Args:
        weights: the encoder's module that selects memory tokens.
    """

    def __init__(self, weights: WordWeights) -> None:
        self._weights = weights
        self._read = torch.empty(0, dtype=torch.bool)
        self.ids = torch.empty(0, dtype=torch.long)
        """Of the tokens that the model reads, `(tokens,)`."""
        self.is_memory = torch.empty(0, dtype=torch.bool)
        """`(tokens,)`."""
        self.shares: list[Tensor] = []
        """Per layer `(k, tokens)`, averaged over heads."""

    @contextmanager
    def watch(self, transformer: nn.Module) -> Iterator[None]:
        """Record the text that the first module of an encoder reads in a block."""
        hooks = [transformer.register_forward_pre_hook(self._note_tokens)]
        hooks += [one.register_forward_hook(self._note_attention) for one in transformer.modules()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _note_tokens(self, _: nn.Module, inputs: tuple[dict[str, Any]]) -> None:
        features = inputs[0]
        self._read = features["attention_mask"][0].bool()
        self.ids = features["input_ids"][0][self._read]
        self.is_memory = self._weights.emb_layer(self.ids).squeeze(-1) > 0

    def _note_attention(self, _: nn.Module, __: Any, output: Any) -> None:
        """Keep the second output of an attention layer: `(1, heads, length, length)`."""
        if not isinstance(output, tuple) or len(output) < 2 or not isinstance(output[1], Tensor):
            return
        length = len(self._read)
        if output[1].ndim == 4 and output[1].shape[2:] == (length, length):
            averaged = output[1][0].float().mean(0)
            self.shares.append(averaged[self._read][:, self._read][self.is_memory].cpu())


def _as_text(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> list[str]:
    """Return each token as text, and by its name where decoding leaves nothing of it."""
    names = tokenizer.convert_ids_to_tokens(ids.tolist())
    texts = [str(tokenizer.decode([one])) for one in ids.tolist()]
    return [text or str(name or "") for text, name in zip(texts, names, strict=True)]
