"""Encoder folders with causal and with bidirectional attention."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm2comp.model import encoder
from llm2comp.model.compressor import Compressor
from llm2comp.model.lineage import Lineage, StageRecord
from llm2comp.model.lora import trainable_parameters
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.recipe import Recipe
from llm2comp.recipe_parts import Lora

CARD = """---
license: mit
---
# A backbone
"""


@pytest.fixture(scope="session")
def folders(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two folders of stage 1, whose backbone and data are local; tests must not write to them."""
    parent = tmp_path_factory.mktemp("folders")
    (parent / "texts.txt").write_text("A text.\n")
    backbone = parent / "tiny-llama"
    AutoModelForCausalLM.from_pretrained(tiny_backbone).save_pretrained(backbone)
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(backbone)
    (backbone / "README.md").write_text(CARD)
    return {
        name: _write(parent, backbone, name, causal=name == "causal")
        for name in ("causal", "bidirectional")
    }


def _write(parent: Path, backbone: Path, name: str, *, causal: bool) -> Path:
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "backbone": {"name": str(backbone)},
            "memory": {"tokens": 4},
            "stages": [
                {
                    "stage": "pretext",
                    "data": [{"source": str(parent / "texts.txt")}, {"source": "boolq-passages"}],
                    "steps": 1,
                    "batch_size": 1,
                    "learning_rate": 1,
                }
            ],
        }
    )
    model = AutoModelForCausalLM.from_pretrained(backbone).eval()
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    extended = add_memory_tokens(model, tokenizer, recipe.memory, recipe.seed)
    compressor = Compressor(model, 4, Lora(r=4), bos_id=extended.bos_token_id, causal=causal).eval()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in trainable_parameters(compressor).values():
            parameter += 0.05 * torch.randn_like(parameter)
    adapter = parent / f"{name}-adapter"
    compressor.save_adapter(adapter)
    record = StageRecord.of(recipe.stages[0], causal=causal, lora={})
    lineage = Lineage.start(recipe, "memory").after(record)
    encoder.save(encoder.build(lineage, [adapter]), parent / name, adapter, lineage)
    return parent / name
