"""An encoder that reads an instruction with each query, as stage 3 of the paper trains it."""

from typing import Any

from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer

from llm2comp.data.pairs import add_instruction


class InstructedEncoder(SentenceTransformerEncoderWrapper):
    """mteb's wrapper of a sentence-transformers model that puts an instruction before each query.

    Every text counts as a query unless it is a passage of a retrieval task. The instruction
    replaces the model's own prompts. It is not a prompt of sentence-transformers, because the
    paper's form `instruction:text` also has a line break after the text.

    Args:
        model: any sentence-transformers model.
        instruction: what the task asks.
    """

    def __init__(self, model: SentenceTransformer, instruction: str) -> None:
        super().__init__(model)
        self.instruction = instruction

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **kwargs: Any) -> Any:
        """Return the embeddings `(texts, dimension)` of the texts in mteb's batches."""
        texts = [text for batch in inputs for text in batch["text"]]
        if prompt_type is not PromptType.document:
            texts = [add_instruction(self.instruction, text) for text in texts]
        options = {key: kwargs[key] for key in ("batch_size", "show_progress_bar")}
        return self.model.encode(texts, prompt="", **options)
