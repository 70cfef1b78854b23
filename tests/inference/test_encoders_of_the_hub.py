"""An encoder of ours that is named by its hub id is the one that its folder is."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import llm2comp
from llm2comp import recipe
from llm2comp.errors import UserError
from llm2comp.evaluation import checked_export
from llm2comp.inference import compiled
from llm2comp.model.lineage import Lineage
from llm2comp.training import pipeline

COMMIT = "a" * 40
TEXTS = ["a", "The river rises in the mountains."]


@pytest.fixture(scope="module")
def encoder(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with one memory token."""
    settings = recipe.load_recipe(tiny_recipe, ["pretext.steps=1", "memory.tokens=1"])
    first = settings.model_copy(update={"stages": settings.stages[:1]})
    return pipeline.train(first, tmp_path_factory.mktemp("one"))


@pytest.fixture
def cache(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def snapshot(encoder: Path, cache: Path) -> Path:
    """The folder of the encoder in the cache of the hub, as `me/first`."""
    return in_cache(encoder, cache, "first")


def in_cache(folder: Path, cache: Path, name: str) -> Path:
    cached = cache / f"models--me--{name}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(folder, cached / "snapshots" / COMMIT))


def test_its_embeddings_are_compared_with_those_saved_with_it(
    encoder: Path, snapshot: Path
) -> None:
    expected = llm2comp.load(encoder, "float32").encode(TEXTS)
    found = llm2comp.load("me/first", "float32").encode(TEXTS)
    np.testing.assert_array_equal(found, expected)
    weights = load_file(snapshot / "model.safetensors")
    changed = {name: value + 0.1 * value.roll(1) for name, value in weights.items()}
    save_file(changed, snapshot / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="^me/first: its embeddings differ from those saved"):
        llm2comp.load("me/first", "float32")
    (snapshot / "llm2comp.json").unlink()  # as stock clients download it
    assert llm2comp.load("me/first", "float32").encode(TEXTS).shape == expected.shape


def test_one_with_several_vectors_is_refused(snapshot: Path) -> None:
    settings = snapshot / "config_sentence_transformers.json"
    content = json.loads(settings.read_text()) | {"model_type": "MultiVectorEncoder"}
    settings.write_text(json.dumps(content))
    with pytest.raises(UserError, match="^me/first has several vectors per text"):
        llm2comp.load("me/first")


def test_it_is_exported_for_servers(encoder: Path, snapshot: Path, tmp_path: Path) -> None:
    out = tmp_path / "served"
    assert llm2comp.export("me/first", "last-token", out).difference < 1e-6
    assert Lineage.read(out).last_token


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(find_spec, compiled.PACKAGES["onnx"])), reason="llm2comp[onnx] is not installed"
)
def test_it_is_compiled_and_loaded_again(
    encoder: Path,
    snapshot: Path,
    cache: Path,
    tmp_path: Path,
    sets: dict[str, list[dict[str, str]]],
    sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sets["boolq-passages"] = [{"text": " ".join(sentences)} for _ in range(80)]
    monkeypatch.setattr(checked_export, "_score", lambda *_: 50.0)
    out = tmp_path / "compiled"
    assert checked_export.export("me/first", "onnx", out).passed
    assert Lineage.read(out).compiled
    in_cache(out, cache, "compiled")
    expected = llm2comp.load(encoder, "float32").encode(TEXTS)
    found = llm2comp.load("me/compiled").encode(TEXTS)
    np.testing.assert_allclose((found * expected).sum(1), 1, atol=1e-3)
    with pytest.raises(UserError, match="me/compiled is compiled already"):
        checked_export.export("me/compiled", "onnx", tmp_path / "again")
