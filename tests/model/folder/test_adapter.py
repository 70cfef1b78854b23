"""The adapter in a folder works on its backbone with PEFT alone, as the guide to clients says."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModel, AutoTokenizer

from llm2comp.model.folder.reference import TEXTS
from llm2comp.model.lineage import Lineage


@pytest.mark.parametrize("name", ["causal", "bidirectional"])
def test_the_adapter_on_the_backbone_gives_the_states_of_the_encoder(
    folders: dict[str, Path], name: str
) -> None:
    folder = folders[name]
    lineage = Lineage.read(folder)
    assert lineage.reference is not None
    config = AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    backbone = AutoModel.from_pretrained(folder.with_name("tiny-llama"))
    backbone.config.is_causal = config.is_causal
    backbone.resize_token_embeddings(config.vocab_size, mean_resizing=False)
    adapted = PeftModel.from_pretrained(backbone, str(folder / "adapter")).eval()
    for text, expected in zip(TEXTS, lineage.reference.embeddings, strict=True):
        with torch.no_grad():
            states = adapted(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        memory = states[-lineage.memory.tokens :].mean(0)
        embedding = torch.nn.functional.normalize(memory, dim=0)
        torch.testing.assert_close(embedding, torch.tensor(expected), atol=1e-5, rtol=0)
