"""An encoder that is given an instruction with its task, as the paper's stage 3 trains it."""

from typing import Any

from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer

from llm2comp.data.pairs import add_instruction


class InstructedEncoder(SentenceTransformerEncoderWrapper):
    """mteb's wrapper of a sentence-transformers model, with one instruction for all but passages.

    The instruction stands in the place of the model's own prompts, and ends in
    a line break behind the text, which a prompt of sentence-transformers cannot.

    Args:
        model: any sentence-transformers model.
        instruction: what the task asks.
    """

    def __init__(self, model: SentenceTransformer, instruction: str) -> None:
        super().__init__(model)
        self.instruction = instruction

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **kwargs: Any) -> Any:
        """Embed the texts of mteb's batches."""
        texts = [text for batch in inputs for text in batch["text"]]
        if prompt_type is not PromptType.document:
            texts = [add_instruction(self.instruction, text) for text in texts]
        options = {key: kwargs[key] for key in ("batch_size", "show_progress_bar")}
        return self.model.encode(texts, prompt="", **options)
