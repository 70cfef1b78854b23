import json
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Path, folder: Path) -> dict[str, Any]:
    """Three stages without dropout, because each process draws dropout of its own.

    Stage 3 has rows with none to three hard negatives, rows with scores, and pairs. Its last
    batches of a source are not full, so that there are fewer rows than processes.
    """
    content: dict[str, Any] = yaml.safe_load(tiny_recipe.read_text())
    texts = tiny_recipe.with_name("texts.txt").read_text().splitlines()
    mined = [
        {"query": texts[i], "pos": [texts[i + 60]], "neg": texts[120 + i : 120 + i + i % 4]}
        for i in range(60)
    ]
    (folder / "mined.jsonl").write_text("\n".join(map(json.dumps, mined)))
    content["backbone"]["dtype"] = "float32"
    for stage in content["stages"]:
        stage |= {"lora": {"r": 4, "dropout": 0.0}, "learning_rate": 1e-3}
        stage |= {"steps": 5, "batch_size": 8, "log_steps": 1, "save_steps": 4}
    pretext, unsupervised, supervised = content["stages"]
    unsupervised["eval_pairs"] = supervised["eval_pairs"] = 4
    del pretext["memory_learning_rate"]
    unsupervised |= {"views": "crop", "attention_dropout": 0.0}
    scored, pairs = (str(tiny_recipe.with_name(f"{name}.jsonl")) for name in ("scored", "pairs"))
    supervised |= {
        "data": [
            {"source": str(folder / "mined.jsonl"), "negatives": 4},
            {"source": scored},
            {"source": pairs, "weight": 0.5},
        ],
        "steps": 12,
        "mini_batch_size": 2,
    }
    return content
