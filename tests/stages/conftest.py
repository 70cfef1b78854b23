"""A tiny run through all three stages, as files."""

import json
import random
from pathlib import Path

import pytest
import yaml


@pytest.fixture(scope="session")
def tiny_recipe(
    tiny_backbone: Path, sentences: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A recipe of three short stages on the tiny backbone and local files; read-only."""
    folder = tmp_path_factory.mktemp("recipe")
    generator = random.Random(0)
    words = " ".join(sentences).split()
    texts = [" ".join(generator.choices(words, k=30)) for _ in range(200)]
    (folder / "texts.txt").write_text("\n".join(texts) + "\n")
    pairs = zip(texts[::2], texts[1::2], strict=True)
    lines = [json.dumps({"anchor": anchor, "positive": positive}) for anchor, positive in pairs]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    scored = [
        json.dumps({"anchor": texts[i], "positive": texts[i + 1], "score": i % 6})
        for i in range(100)
    ]
    (folder / "scored.jsonl").write_text("\n".join(scored) + "\n")
    common = {"lora": {"r": 4}, "learning_rate": 1e-2, "save_steps": 4, "log_steps": 2}
    recipe = {
        "name": "tiny",
        "backbone": {"name": str(tiny_backbone)},
        "memory": {"tokens": 4},
        "stages": [
            {
                "stage": "pretext",
                "data": [{"source": str(folder / "texts.txt")}],
                "passages": {"min_chars": 10, "max_tokens": 60, "crop": True},
                "split": {"low": 20, "high": 30, "start": 25, "ramp_steps": 10},
                "steps": 30,
                "batch_size": 4,
                "memory_learning_rate": 2e-2,
                "eval_steps": 10,
                "eval_passages": 8,
                **common,
            },
            {
                "stage": "unsupervised",
                "data": [{"source": str(folder / "texts.txt")}],
                "steps": 24,
                "batch_size": 8,
                **common,
            },
            {
                "stage": "supervised",
                "data": [
                    {"source": str(folder / name)} for name in ("pairs.jsonl", "scored.jsonl")
                ],
                "steps": 20,
                "batch_size": 8,
                "mini_batch_size": 4,
                "memory_learning_rate": 1e-3,
                **common,
            },
        ],
        "evaluation": {"tasks": []},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
