"""What the tests of the families share: texts, tiny backbones, a process with stock libraries."""

import gc
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_model import Family
from transformers import AutoTokenizer

Answer = dict[str, Any]


@pytest.fixture(scope="session")
def stock() -> Iterator[Callable[[Path, list[str]], Answer]]:
    """Embed texts in another process, which has sentence-transformers and not llm2comp."""
    script = Path(__file__).with_name("embed_with_stock.py")
    pipe = subprocess.PIPE
    command = [sys.executable, "-W", "ignore", str(script)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def embed(folder: Path, texts: list[str]) -> Answer:
            process.stdin.write(json.dumps({"folder": str(folder), "texts": texts}) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            assert isinstance(answer, dict)
            return answer

        yield embed


@pytest.fixture(scope="session")
def texts(sentences: list[str]) -> list[str]:
    """Texts shorter and longer than any window of the families."""
    return ["Whales", sentences[0], " ".join(sentences), sentences[3]]


@pytest.fixture(scope="session")
def data(sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `texts.txt` and `pairs.jsonl`."""
    folder = tmp_path_factory.mktemp("data")
    generator = random.Random(0)
    words = " ".join(sentences).split()
    passages = [" ".join(generator.choices(words, k=24)) for _ in range(24)]
    (folder / "texts.txt").write_text("\n".join(passages) + "\n")
    pairs = zip(passages[::2], passages[1::2], strict=True)
    lines = [json.dumps({"anchor": anchor, "positive": positive}) for anchor, positive in pairs]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def backbone(
    tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Family], Path]:
    """Write the tiny model of a family once, and return its folder."""
    # The Trainer collects garbage, and would walk each time through all that was imported.
    gc.freeze()
    parent = tmp_path_factory.mktemp("families")
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)

    def write(family: Family) -> Path:
        folder = parent / family.name
        if not folder.exists():
            family.write(folder, tokenizer)
        return folder

    return write
