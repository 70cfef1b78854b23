"""What the tests of the families do with a tiny backbone: train it, and look at each part."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from llm2comp.model.compressor import Compressor
from llm2comp.recipe import Pretext, Recipe
from llm2comp.training import contrastive
from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.distillation import Distillation
from llm2comp.training.pipeline import train
from llm2comp.training.pretext import _compressor, _extended_backbone

K = 3


def make_recipe(backbone: Path, data: Path, attention: str, lora: dict[str, Any]) -> Recipe:
    common = {"learning_rate": 1e-2, "log_steps": 1, "lora": lora}
    source = [{"source": str(data / "texts.txt")}]
    return Recipe.model_validate(
        {
            "name": "tiny",
            "backbone": {"name": str(backbone), "dtype": "float32"},
            "memory": {"tokens": K},
            "stages": [
                {
                    "stage": "pretext",
                    "data": source,
                    "attention": attention,
                    "passages": {"min_chars": 10, "max_tokens": 48, "crop": True},
                    "split": {"low": 24, "high": 32},
                    "steps": 2,
                    "batch_size": 2,
                    "eval_passages": 2,
                    **common,
                },
                {
                    "stage": "unsupervised",
                    "data": source,
                    "steps": 2,
                    "batch_size": 4,
                    "eval_pairs": 2,
                    **common,
                },
                {
                    "stage": "supervised",
                    "data": [{"source": str(data / "pairs.jsonl")}],
                    "steps": 2,
                    "batch_size": 4,
                    "mini_batch_size": 2,
                    "eval_pairs": 2,
                    **common,
                },
            ],
            "evaluation": {"tasks": []},
        }
    )


def run_chain(recipe: Recipe, out: Path) -> Path:
    with (out.parent / f"{out.name}.log").open("w") as log:
        return train(recipe, out, Console(file=log))


def student_of(recipe: Recipe, adapter: Path | None = None) -> tuple[Compressor, PreTrainedTokenizerBase]:
    """Return the model that stage 1 trains, and its tokenizer."""
    stage = recipe.stages[0]
    assert isinstance(stage, Pretext)
    model, tokenizer = _extended_backbone(recipe, stage, torch.float32)
    compressor = _compressor(recipe, stage, model, tokenizer)
    if adapter is not None:
        compressor.load_adapter(adapter)
    return compressor, tokenizer


@torch.no_grad()
def embed(compressor: Compressor, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    """Return the normalised means of memory that the trained, unmerged model gives."""
    compressor.eval()
    rows = tokenizer(texts, padding=True, return_tensors="pt")
    memory = compressor.compress(rows["input_ids"], rows["attention_mask"])
    return torch.nn.functional.normalize(memory.mean(1), dim=-1)
