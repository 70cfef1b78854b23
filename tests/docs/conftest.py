"""A cache of stand-ins: what the documentation names is there, only very small."""

import json
import random
import shutil
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from llm2comp.data import catalog
from llm2comp.model import encoder, released
from llm2comp.model.backbone import load_backbone
from llm2comp.model.lineage import Lineage
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.recipe import STAGE_FOLDERS
from llm2comp.recipe_parts import Memory

RELEASE = "smollm2-135m-llm2comp"


@pytest.fixture(scope="session")
def stand_ins(
    tiny_backbone: Path, sentences: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a cache folder with a tiny backbone, encoders and data under the real names."""
    cache = tmp_path_factory.mktemp("stand-ins") / "cache"
    shutil.copytree(tiny_backbone, cache / "models" / "smollm2-135m")
    tiny = _encoder(tiny_backbone)
    lineage = Lineage.read(released.RELEASED / RELEASE)
    adapters = [released.RELEASED / RELEASE / folder for folder in STAGE_FOLDERS.values()]
    for count, stage in enumerate(STAGE_FOLDERS.values(), start=1):
        digest = released._digest(adapters[:count])
        folder = cache / "models" / f"{RELEASE}-{digest}" / stage
        tiny.save_pretrained(str(folder))
        lineage.until(count).write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM2COMP_CACHE", str(cache))
        _write_peer(tiny)
        _write_data(sentences)
    return cache


def _encoder(backbone: Path) -> SentenceTransformer:
    model, tokenizer = load_backbone(str(backbone))
    extended = add_memory_tokens(model, tokenizer, Memory(), seed=0)
    return encoder.assemble(model, extended, 8, causal=True)


def _files(name: str) -> list[Path]:
    """Return where the cache keeps the files of a packaged source."""
    entry = catalog.entry(name)
    folder = catalog.cache_dir() / "data" / f"{entry.package}-{entry.version}"
    files = [folder / member.replace("*", "0") for member in entry.files]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
    return files


def _write_peer(tiny: SentenceTransformer) -> None:
    files = _files("minilm")
    tiny.save_pretrained(str(files[0].parent))
    for file in files:
        if not file.exists():
            file.write_text("{}")


def _write_data(sentences: list[str]) -> None:
    draw = random.Random(0)
    words = " ".join(sentences).split()

    def text(length: int) -> str:
        return " ".join(draw.choices(words, k=length))

    (boolq,) = _files("boolq-passages")
    rows = [{"question": text(8), "passage": f"Title -- {text(90)}"} for _ in range(400)]
    boolq.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (squad,) = _files("squad-dev")
    asked = [
        [{"id": str(row), "question": text(6), "answers": [{"text": text(2)}]}] for row in range(30)
    ]
    paragraphs = [{"context": text(40), "qas": one} for one in asked]
    squad.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    for file in _files("stsb"):
        columns = ["genre", "track5.en-en", "2017", "1"]
        lines = [
            "\t".join([*columns, f"{draw.uniform(0, 5):.2f}", text(8), text(8)]) for _ in range(30)
        ]
        file.write_text("\n".join(lines) + "\n")
