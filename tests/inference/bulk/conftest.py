"""A tiny encoder to encode files with."""

import shutil
from pathlib import Path

import pytest

from llm2comp.data import catalog

MODEL = Path(__file__).parents[2] / "fixtures" / "v0_1" / "run-finished" / "model"


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder folder with 16 dimensions. Tests must not write to it."""
    folder = tmp_path_factory.mktemp("encoder") / "model"
    shutil.copytree(MODEL, folder)
    return folder


@pytest.fixture(autouse=True)
def _own_world(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, sentences: list[str]) -> None:
    """Download nothing for the ranges of int8, and keep checks of bfloat16 to the test."""
    rows = [{"text": " ".join(sentences[i % 8 :])} for i in range(300)]
    monkeypatch.setattr(catalog, "rows", lambda _: iter(rows))
