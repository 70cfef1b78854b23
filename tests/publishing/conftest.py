"""A run with an encoder folder, and a hub to push it to."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from stand_in import TOKEN, Hub
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm2comp.recipe import load_recipe
from llm2comp.training import pipeline

BACKBONE_CARD = "---\nlicense: mit\n---\n# A backbone\n"


@pytest.fixture(scope="session")
def finished(
    tiny_backbone: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of stage 1 without a step; tests must not write to it."""
    parent = tmp_path_factory.mktemp("publishing")
    backbone = parent / "tiny-llama"
    AutoModelForCausalLM.from_pretrained(tiny_backbone).save_pretrained(backbone)
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(backbone)
    (backbone / "README.md").write_text(BACKBONE_CARD)
    recipe = load_recipe(tiny_recipe, [f"backbone.name={backbone}", "pretext.steps=0"])
    recipe.stages = recipe.stages[:1]
    pipeline.train(recipe, parent / "first")
    return parent / "first"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run, to write to."""
    return Path(shutil.copytree(finished, tmp_path / "first"))


@pytest.fixture
def folder(run: Path) -> Path:
    """The encoder folder of the copy."""
    return run / "model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty_cache: Path) -> Iterator[Hub]:
    """An empty hub that the client talks to, with a token that may write."""
    running = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", running.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in has no such storage
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield running
    running.close()
