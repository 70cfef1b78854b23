"""An encoder folder with four memory tokens."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm2comp import recipe
from llm2comp.model import encoder as encoders
from llm2comp.model.memory_tokens import add_memory_tokens


@pytest.fixture(scope="session")
def encoder(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained, read-only."""
    model = AutoModelForCausalLM.from_pretrained(tiny_backbone)
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    extended = add_memory_tokens(model, tokenizer, recipe.Memory(tokens=4), seed=0)
    folder = tmp_path_factory.mktemp("encoder") / "memory"
    built = encoders.assemble(model, extended, 4, causal=True)
    built.prompts = {"query": "Find: ", "document": ""}
    built.save_pretrained(str(folder))
    return folder
