"""An encoder that is quick, and a store of vectors without any encoder."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from llm2comp.evaluation import baselines
from llm2comp.retrieval.about import About
from llm2comp.retrieval.store import Store

pytest.importorskip("lancedb")


@pytest.fixture(scope="session")
def model(tiny_backbone: Path) -> SentenceTransformer:
    return baselines.build("weighted-mean", tiny_backbone)


@pytest.fixture
def new_store(tmp_path: Path) -> Callable[..., Store]:
    """Make an empty store of some dimension."""

    def make(dim: int, precision: str = "int8", k: int = 1) -> Store:
        folder = tmp_path / f"store-{dim}-{precision}-{k}"
        folder.mkdir()
        about = About(model="none", dim=dim, precision=precision, vectors=k, document=[], query=[])
        return Store.create(folder, about)

    return make


@pytest.fixture
def prompts(model: SentenceTransformer) -> Iterator[Callable[..., None]]:
    """Give the model prompts, until the test ends."""
    before = model.prompts
    yield lambda **prompts: setattr(model, "prompts", {"query": "", "document": "", **prompts})
    model.prompts = before


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
