"""Small encoders to start from: one of ours, and one of others that was made by hand."""

import json
import random
import shutil
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
)

from llm2comp.recipe import Recipe, parse_recipe


def write_tokenizer(folder: Path, sentences: list[str], max_length: int) -> int:
    """Write a BERT tokenizer that knows the words of some sentences, and return how many it has."""
    words = sorted({word.strip(".,:") for word in " ".join(sentences).lower().split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *".,:"]
    folder.mkdir(parents=True)
    path = folder / "vocab.txt"
    path.write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab=str(path), model_max_length=max_length).save_pretrained(folder)
    return len(vocabulary)


def write_bert(folder: Path, sentences: list[str]) -> Path:
    """Write a sentence-transformers folder with a random BERT, prompts and a dense layer."""
    vocab_size = write_tokenizer(folder, sentences, max_length=48)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=0.2,
        )
        BertModel(config).save_pretrained(folder)
        modules = [Transformer(str(folder), max_seq_length=40), Pooling(32), Dense(32, 16)]
        model = SentenceTransformer(
            modules=[*modules, Normalize()],
            device="cpu",
            prompts={"query": "query: ", "document": "passage: ", "topic": "topic: "},
        )
        model.save_pretrained(str(folder / "encoder"))
    shutil.rmtree(folder / "encoder" / "3_Normalize")  # older versions wrote none
    return folder / "encoder"


def write_reranker(folder: Path, sentences: list[str], labels: int = 1) -> Path:
    """Write a random cross-encoder."""
    vocab_size = write_tokenizer(folder, sentences, max_length=64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=vocab_size,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            num_labels=labels,
            initializer_range=0.8,
        )
        BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def write_pairs(file: Path, sentences: list[str], rows: int = 60) -> Path:
    """Write pairs of halves of one text."""
    generator = random.Random(0)
    words = " ".join(sentences).split()
    lines = []
    for _ in range(rows):
        text = generator.choices(words, k=16)
        lines.append({"anchor": " ".join(text[:8]), "positive": " ".join(text[8:])})
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return file


def fine_tuning(base: object, pairs: Path, *overrides: str) -> Recipe:
    """Return a recipe of a few steps that starts from a base."""
    content = {
        "name": "tuned",
        "base": str(base),
        "backbone": {"dtype": "float32"},
        "stages": [
            {
                "stage": "supervised",
                "data": [{"source": str(pairs)}],
                "lora": {"r": 4},
                "steps": 6,
                "batch_size": 8,
                "learning_rate": 1e-2,
                "save_steps": 2,
                "log_steps": 2,
                "eval_pairs": 4,
            }
        ],
        "evaluation": {"tasks": []},
    }
    return parse_recipe(content, list(overrides), "recipe")
