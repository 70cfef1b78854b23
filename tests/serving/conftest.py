"""Real servers with tiny random encoders."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from running_server import Running, serve_indexes
from sentence_transformers import SentenceTransformer

import llm2comp
from llm2comp.inference.embed import embed
from llm2comp.inference.load import load
from llm2comp.model import encoder
from llm2comp.model.backbone import load_backbone
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.recipe_parts import Memory
from llm2comp.serving import batching
from llm2comp.serving.settings import Limits

Start = Callable[..., Running]
Hold = Callable[[Running], AbstractContextManager[list[str]]]
PROMPTS = {"query": "find: ", "document": "text: "}


@pytest.fixture(scope="session")
def folder(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder folder with four memory tokens and prompts, which reads 64 tokens of a text."""
    model, tokenizer = load_backbone(str(tiny_backbone))
    with torch.random.fork_rng():
        extended = add_memory_tokens(model, tokenizer, Memory(tokens=4), seed=0)
    made = encoder.assemble(model, extended, 4, causal=True, prompts=PROMPTS, max_length=64)
    path = tmp_path_factory.mktemp("served") / "encoder"
    made.save_pretrained(str(path))
    return path


@pytest.fixture(scope="session")
def loaded(folder: Path) -> SentenceTransformer:
    """The encoder as a program loads it. The servers have copies of their own."""
    return load(folder, "float32")


@pytest.fixture(scope="session")
def notes(folder: Path, sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an index of the sentences, `s0` and so on, with their numbers in `n`."""
    pytest.importorskip("lancedb")
    path = tmp_path_factory.mktemp("indexes")
    rows = [{"id": f"s{n}", "text": text, "n": n} for n, text in enumerate(sentences)]
    (path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    llm2comp.index(folder, path / "corpus.jsonl", path / "notes", dtype="float32")
    return path / "notes"


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Start servers of one's own, with limits and tokens."""
    running: list[Running] = []

    def start_one(tokens: tuple[bytes, ...] = (), **limits: Any) -> Running:
        running.append(Running({"tiny": load(folder, "float32")}, Limits(**limits), tokens))
        return running[-1]

    yield start_one
    for one in running:
        one.stop()


@pytest.fixture
def serve(folder: Path) -> Iterator[Start]:
    """Start servers of indexes, with the encoder as the model `tiny`."""
    running: list[Running] = []

    def start(*indexes: Path, model: Path | None = folder, **limits: Any) -> Running:
        running.append(serve_indexes(model, *indexes, **limits))
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture(scope="session")
def server(folder: Path) -> Iterator[Running]:
    """A server that tests share: two models, short limits."""
    encoders = {"tiny": load(folder, "float32"), "second": load(folder, "float32")}
    running = Running(encoders, Limits(texts=64, characters=5000, body=100_000))
    yield running
    running.stop()


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Hold:
    """Keep the thread of a server's model busy with the text `held` for a while.

    The context yields the list of texts that are computed, `held` first.
    """

    @contextmanager
    def hold_model(running: Running) -> Iterator[list[str]]:
        computed: list[str] = []
        inside, leave = threading.Event(), threading.Event()

        def slow(model: Any, texts: list[str], *options: Any) -> Any:
            computed.extend(texts)
            if texts == ["held"]:
                inside.set()
                assert leave.wait(120)
            return embed(model, texts, *options)

        monkeypatch.setattr(batching, "embed", slow)
        held = running.service.models["tiny"].batcher.submit(["held"], None)
        assert inside.wait(60)
        try:
            yield computed
        finally:
            leave.set()
            held.result(60)

    return hold_model
