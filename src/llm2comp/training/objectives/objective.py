"""The interface of an objective of stage 1."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llm2comp.model.compressor import Compressor, Decoder
from llm2comp.model.prompt_format import PROMPT_FORMATS, PromptFormat
from llm2comp.recipe import Pretext
from llm2comp.training.objectives.batch import Batch


class Objective(ABC):
    """A loss for stage 1, and the prompt format of the encoder that is trained with it."""

    prompt_format: ClassVar[str] = "memory"
    """A key of `llm2comp.model.prompt_format.PROMPT_FORMATS`."""
    bidirectional: ClassVar[bool] = False
    """Whether the objective needs bidirectional attention."""
    whole_passage: ClassVar[bool] = False
    """Whether the encoder reads the whole passage, so that no split point is drawn."""

    @classmethod
    def format(cls) -> PromptFormat:
        """Return the prompt format, which says how the encoder reads a text."""
        return PROMPT_FORMATS[cls.prompt_format]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, stage: Pretext) -> Self:  # noqa: ARG003
        """Return the objective of a stage.

        Args:
            tokenizer: gives the ids of the objective's prompts or mask token.
            stage: the settings of stage 1.
        """
        return cls()

    @abstractmethod
    def loss(self, compressor: Compressor, batch: Batch) -> Tensor:
        """Return the scalar loss of a batch, in nats."""

    @abstractmethod
    def pooled(self, compressor: Compressor, batch: Batch) -> Sequence[Tensor]:
        """Return the outputs whose mean is the embedding, as the encoder folder computes them.

        Returns:
            For each text `n_1 … n_a`, the outputs `(m, hidden)` at its memory tokens or at its own
            tokens. The prompt format says which.
        """


class Compression(Objective):
    """An objective that compresses a text and judges what the frozen model does with memory."""

    def pooled(self, compressor: Compressor, batch: Batch) -> Sequence[Tensor]:
        """Return each text's memory `(k, hidden)`."""
        return compressor.compress(batch.input_ids, batch.attention_mask).unbind()

    def loss(self, compressor: Compressor, batch: Batch) -> Tensor:
        """Return the loss given the text's own memory, in nats per token."""
        memory = compressor.compress(batch.input_ids, batch.attention_mask)
        return self.loss_from_memory(compressor, compressor.as_input(memory), batch)

    @abstractmethod
    def loss_from_memory(self, decoder: Decoder, memory: Tensor, batch: Batch) -> Tensor:
        """Return the loss that a memory gives, in nats per token.

        Args:
            decoder: the frozen model, which reads the memory; a compressor is one.
            memory: `(batch, m, hidden)`, of these texts or any other.
            batch: the texts and their continuations.
        """
