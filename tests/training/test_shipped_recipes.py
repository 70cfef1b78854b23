"""Shipped recipes for other backbones run on random models with two layers of their sizes."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from llm2comp.model import released
from llm2comp.model.lineage import Lineage
from llm2comp.recipe import Recipe, load_recipe, recipe_path
from llm2comp.training import pipeline

LAYERS = 2
LLAMA_2 = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
}
MISTRAL = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "tie_word_embeddings": False,
}
QWEN3 = {
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 40960,
    "max_window_layers": LAYERS,
    "rms_norm_eps": 1e-6,
    "sliding_window": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama2-7b": LlamaConfig(**LLAMA_2),
    "mistral-7b": MistralConfig(**MISTRAL),
    "qwen3-0.6b": Qwen3Config(
        **QWEN3,
        hidden_size=1024,
        intermediate_size=3072,
        num_attention_heads=16,
        num_hidden_layers=LAYERS,
        tie_word_embeddings=True,
    ),
    "qwen3-8b": Qwen3Config(
        **QWEN3,
        hidden_size=4096,
        intermediate_size=12288,
        num_attention_heads=32,
        num_hidden_layers=LAYERS,
        tie_word_embeddings=False,
    ),
    "llama3.2-1b": LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
        tie_word_embeddings=True,
    ),
    "gemma3-1b": Gemma3TextConfig(
        hidden_size=1152,
        intermediate_size=6912,
        num_attention_heads=4,
        num_key_value_heads=1,
        num_hidden_layers=LAYERS,
        head_dim=256,
        hidden_activation="gelu_pytorch_tanh",
        max_position_embeddings=32768,
        query_pre_attn_scalar=256,
        rms_norm_eps=1e-6,
        sliding_window=512,
        layer_types=["sliding_attention", "full_attention"],
        tie_word_embeddings=True,
    ),
}
"""The `config.json` of each backbone on the hub, but for layers and vocabulary. Gemma has both of
its kinds of layers; it repeats five with a window and one without."""
SIZES = [
    *("steps=1", "batch_size=4", "warmup_steps=0"),
    *("save_steps=1", "log_steps=1", "eval_steps=1"),
]


def backbone(config: PreTrainedConfig, tokenizer: Path, folder: Path) -> Path:
    """Write a random model with a small vocabulary, in bfloat16."""
    text = AutoTokenizer.from_pretrained(tokenizer)
    config.num_hidden_layers = LAYERS
    config.vocab_size = len(text)
    config.bos_token_id, config.eos_token_id = text.bos_token_id, text.eos_token_id
    config.pad_token_id = text.pad_token_id
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    text.save_pretrained(folder)
    return folder


def local(name: str, model: Path, folder: Path, sentences: list[str]) -> Recipe:
    """Return a shipped recipe on local files, with one step per stage."""
    generator = random.Random(0)
    words = " ".join(sentences).split()
    texts = [" ".join(generator.choices(words, k=60)) for _ in range(16)]
    (folder / "texts.txt").write_text("\n".join(texts) + "\n")
    pairs = [
        {"anchor": a[:80], "positive": b} for a, b in zip(texts[::2], texts[1::2], strict=True)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")
    source: Any = {"source": str(folder / "texts.txt")}
    question = {"source": str(folder / "pairs.jsonl"), "query_instruction": "Find the next text"}
    overrides = [
        f"backbone.name={model}",
        "backbone.dtype=float32",
        f"pretext.data=[{json.dumps(source)}]",
        f"unsupervised.data=[{json.dumps(source)}]",
        f"supervised.data=[{json.dumps(question)}]",
        "pretext.passages={min_chars: 100, max_tokens: 48, crop: true}",
        "pretext.eval_passages=2",
        "unsupervised.eval_pairs=2",
        "supervised.eval_pairs=2",
        "unsupervised.max_length=24",
        "supervised.max_length=24",
        "unsupervised.mini_batch_tokens=100",
        "supervised.mini_batch_tokens=100",
        "evaluation.tasks=[]",
    ]
    stages = ("pretext", "unsupervised", "supervised")
    overrides += [f"{stage}.{size}" for stage in stages for size in SIZES]
    return load_recipe(recipe_path(name), overrides)


LARGE = {"gemma3-1b", "llama2-7b", "llama3.2-1b", "mistral-7b", "qwen3-8b"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.exhaustive) if n in LARGE else n for n in CONFIGS],
)
def test_a_recipe_runs_on_two_layers_of_its_backbone(
    name: str, tiny_backbone: Path, sentences: list[str], tmp_path: Path
) -> None:
    model = backbone(CONFIGS[name], tiny_backbone, tmp_path / "backbone")
    settings = local(name, model, tmp_path, sentences)
    folder = pipeline.train(settings, tmp_path / "run", Console(quiet=True))
    trained = Lineage.read(folder)
    assert [stage.stage for stage in trained.stages] == ["pretext", "unsupervised", "supervised"]
    adapted = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert all(stage.lora["target_modules"] == adapted for stage in trained.stages)
    assert not trained.stages[-1].causal
    encoder = SentenceTransformer(str(folder), device="cpu")
    query = encoder.encode_query("Who rehearsed?")
    prompted = encoder.encode(settings.prompts["query"] + "Who rehearsed?")
    assert query.tolist() == prompted.tolist()
    assert abs(query @ query - 1) < 1e-5


def test_there_is_a_configuration_for_every_recipe_of_a_hub_model() -> None:
    shipped = {path.stem for path in recipe_path("demo").parent.glob("*.yaml")}
    assert set(CONFIGS) == shipped - {"demo", "finetune", "smollm2-135m"}


def test_the_released_encoder_comes_from_the_shipped_recipe() -> None:
    lineage = Lineage.read(released.RELEASED / "smollm2-135m-llm2comp")
    recipe = load_recipe(recipe_path("smollm2-135m"))
    for key in ("name", "seed", "backbone", "memory", "prompts", "max_length"):
        assert getattr(lineage, key) == getattr(recipe, key), key
    assert [record.stage for record in lineage.stages] == [stage.stage for stage in recipe.stages]
    for record, stage in zip(lineage.stages, recipe.stages, strict=True):
        recorded, settings = record.model_dump(), stage.model_dump()
        assert {"data", "steps", "batch_size", "learning_rate", "lora"} <= settings.keys()
        for key in settings.keys() & recorded.keys() - {"lora"}:
            assert recorded[key] == settings[key], (stage.stage, key)
        assert (
            recorded["lora"].items()
            >= {
                key: value for key, value in settings["lora"].items() if key != "target_modules"
            }.items()
        )
