"""What a pretext objective is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llm2comp.model.compressor import Compressor
from llm2comp.model.prompt_format import PROMPT_FORMATS, PromptFormat
from llm2comp.training.objectives.batch import Batch


class Objective(ABC):
    """A loss to train stage 1 on, and the prompt format of the encoder that it makes."""

    prompt_format: ClassVar[str] = "memory"
    """A key of :data:`llm2comp.model.prompt_format.PROMPT_FORMATS`."""
    bidirectional: ClassVar[bool] = False
    """Whether it makes sense only with bidirectional attention."""

    @classmethod
    def format(cls) -> PromptFormat:
        """Return how the encoder reads a text."""
        return PROMPT_FORMATS[cls.prompt_format]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Self:  # noqa: ARG003 (for subclasses)
        """Make the objective, with its prompts or mask token as the tokenizer has them."""
        return cls()

    @abstractmethod
    def loss(self, compressor: Compressor, batch: Batch) -> Tensor:
        """Return the scalar loss of a batch, in nats."""

    @abstractmethod
    def pooled(self, compressor: Compressor, batch: Batch) -> Sequence[Tensor]:
        """Return, for each text ``n_1 … n_a``, the outputs whose mean is its embedding.

        As the encoder folder has them: ``(m, hidden)``, of the memory tokens or
        of the text's own, by the prompt format.
        """


class Compression(Objective):
    """An objective that judges memory: compress the text, then let the frozen model go on."""

    def pooled(self, compressor: Compressor, batch: Batch) -> Sequence[Tensor]:
        """Return each text's memory ``(k, hidden)``."""
        return compressor.compress(batch.input_ids, batch.attention_mask).unbind()

    def loss(self, compressor: Compressor, batch: Batch) -> Tensor:
        """Return the loss given the text's own memory, in nats per token."""
        memory = compressor.compress(batch.input_ids, batch.attention_mask)
        return self.loss_from_memory(compressor, compressor.as_input(memory), batch)

    @abstractmethod
    def loss_from_memory(self, compressor: Compressor, memory: Tensor, batch: Batch) -> Tensor:
        """Return the loss given any ``memory`` ``(batch, m, hidden)``, in nats per token."""
