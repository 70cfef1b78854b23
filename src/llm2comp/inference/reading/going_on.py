"""Let the frozen language model go on from a memory, or from a text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, TextStreamer

from llm2comp.data.text_files import replace_surrogates
from llm2comp.errors import UserError
from llm2comp.inference.embed import as_texts
from llm2comp.inference.reading.reader import Reader


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: the most tokens.
        temperature: 0 takes the likeliest token each time; above 0, tokens are drawn from the
            distribution at this temperature.
        top_p: draw from the likeliest tokens whose probabilities sum to this (Holtzman et al.,
            2020).
        seed: of the draws.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: if one is out of its range.
        """
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}; it must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1")

    def config(self, reader: Reader) -> GenerationConfig:
        """Return the settings for transformers' `generate`, with no others of the model's own."""
        ends = reader.model.generation_config.eos_token_id
        sampled = self.temperature > 0
        return GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=self.max_new_tokens,
            do_sample=sampled,
            temperature=self.temperature if sampled else None,
            top_p=self.top_p if sampled else None,
            top_k=0 if sampled else None,
            repetition_penalty=1.0,
            eos_token_id=reader.tokenizer.eos_token_id if ends is None else ends,
            pad_token_id=reader.encoder.tokenizer.pad_token_id,
            use_cache=True,
        )


@dataclass(frozen=True)
class Memory:
    """The memory of texts, with the language model that reads it.

    Attributes:
        texts: that were compressed.
        vectors: `(texts, k, hidden)`, float32, as the encoder gives them.
        reader: reads them.
    """

    texts: list[str]
    vectors: Tensor
    reader: Reader

    @classmethod
    def of(cls, reader: Reader, texts: Sequence[str]) -> "Memory":
        """Compress texts. A text that is longer than the encoder reads is cut.

        Raises:
            UserError: if `texts` is no list of strings, or is empty.
        """
        given = as_texts(texts)
        if not given:
            raise UserError("there are no texts to compress")
        ids = [of_text[: reader.max_tokens] for of_text in reader.tokens(given)]
        return cls(given, reader.compress(ids), reader)

    @cached_property
    def inputs(self) -> Tensor:
        """The memory `(texts, k, hidden)` in the scale in which the language model reads it."""
        return self.reader.as_input(self.vectors)

    def go_on(self, prompt: str, sampling: Sampling) -> list[str]:
        """Return what the language model says after the memory of each text and a prompt."""
        (ids,) = self.reader.tokens([replace_surrogates(prompt)])
        after = self.reader.embed(ids)
        return [
            go_on(self.reader, self.reader.prefix(memory, after), sampling)
            for memory in self.inputs
        ]


class _Told(TextStreamer):
    """Gives each piece of text to a function, and not to `print`."""

    def __init__(self, reader: Reader, tell: Callable[[str], object]) -> None:
        super().__init__(reader.tokenizer, skip_special_tokens=True)
        self._tell = tell

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._tell(f"{text}\n" if stream_end else text)


@torch.no_grad()
def go_on(
    reader: Reader,
    prefix: Tensor,
    sampling: Sampling,
    tell: Callable[[str], object] | None = None,
) -> str:
    """Return what the frozen language model says after a prefix.

    Args:
        reader: holds the model.
        prefix: `(length, hidden)`, as `Reader.prefix` returns it.
        sampling: how tokens are chosen.
        tell: gets each piece of the text as soon as it is there, and a line break at the end.

    Raises:
        UserError: if the model has too few positions.
    """
    (said,) = generated(
        reader, [prefix], sampling, streamer=None if tell is None else _Told(reader, tell)
    )
    return reader.decode(said)


@torch.no_grad()
def generated(
    reader: Reader,
    prefixes: Sequence[Tensor],
    sampling: Sampling,
    streamer: TextStreamer | None = None,
    stop: str | None = None,
) -> list[list[int]]:
    """Return the tokens that the frozen language model says after prefixes, all at once.

    Args:
        reader: holds the model.
        prefixes: `(length, hidden)` each, as `Reader.prefix` returns them.
        sampling: how tokens are chosen.
        streamer: gets the tokens of one prefix.
        stop: a text that ends what is said.

    Returns:
        Token ids for each prefix. What ends before others is filled up with padding.

    Raises:
        UserError: if the model has too few positions.
    """
    lengths = [len(prefix) for prefix in prefixes]
    reader.require_positions(max(lengths) + sampling.max_new_tokens)
    config = sampling.config(reader)
    config.stop_strings = stop
    # Padding is on the left, because the model goes on at the right.
    masks = [torch.ones(length, dtype=torch.long) for length in lengths]
    with torch.random.fork_rng():
        torch.manual_seed(sampling.seed)
        said: Tensor = cast(Any, reader.model).generate(
            inputs_embeds=pad_sequence(list(prefixes), batch_first=True, padding_side="left"),
            attention_mask=pad_sequence(masks, batch_first=True, padding_side="left").to(
                prefixes[0].device
            ),
            generation_config=config,
            tokenizer=reader.tokenizer,
            streamer=streamer,
        )
    return [list(row) for row in said.tolist()]
